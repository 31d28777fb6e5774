"""Captions by a vision-language model: a folder in transformers' layout and a prompt (TexTok, appendix D)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from imtok.config import ConfigError
from imtok.layers.collective import best_device
from imtok.pretrained.transformers_folder import open_model

PROMPT = (
    "Describe an image{of_class} in a single continuous detailed paragraph, using no more than {word_count} words. "
    "Include descriptions of the appearance, colors, textures, size, environment, and any notable features or actions. "
    "Make sure to provide a vivid and engaging description that captures the essence of {the_class}. Output only the "
    "description without any additional words or commentary and the description must not exceed {word_count} words."
)
"""TexTok's prompt; the paper's also names the data set."""
TOKENS_PER_WORD = 2


class PictureCaptioner:
    """Writes captions of pictures.

    Args:
        model: of transformers' `AutoModelForImageTextToText`.
        processor: of the same model.
        max_words: longer captions are cut; the prompt asks for no more.
    """

    def __init__(self, model: Any, processor: Any, max_words: int = 75) -> None:
        self.model, self.processor, self.max_words = model.eval(), processor, max_words

    @torch.no_grad()
    def caption(self, picture: UInt8[np.ndarray, "h w 3"], label: str | None = None) -> str:
        """One caption, always the same for a picture (no sampling).

        Args:
            picture: RGB.
            label: its class, which the prompt then names.
        """
        templated = bool(getattr(self.processor, "chat_template", None))
        if templated:
            content = [{"type": "image"}, {"type": "text", "text": self.prompt(label)}]
            asked = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        else:
            asked = f"{self.processor.image_token}\n{self.prompt(label)}"
        given = self.processor(  # a template writes its special tokens itself
            images=Image.fromarray(picture), text=asked, return_tensors="pt", add_special_tokens=not templated
        ).to(self.model.device, self.model.dtype)
        new = self.model.generate(**given, max_new_tokens=TOKENS_PER_WORD * self.max_words, do_sample=False)
        words = self.processor.decode(new[0, given["input_ids"].shape[1] :], skip_special_tokens=True).split()
        return " ".join(words[: self.max_words])

    def prompt(self, label: str | None) -> str:
        """What the model is asked."""
        name = None if label is None else label.replace("_", " ")
        of_class, the_class = ("", "it") if name is None else (f" of a {name}", f"the {name}")
        return PROMPT.format(of_class=of_class, the_class=the_class, word_count=self.max_words)


def load_captioner(folder: Path, max_words: int = 75) -> PictureCaptioner:
    """A captioner from a folder with config.json, the processor's files and *.safetensors; nothing in it is executed.

    Raises:
        ConfigError: the folder holds something else; one line.
    """
    what = "model that writes captions of pictures"
    model, processor = open_model(folder, "AutoModelForImageTextToText", "AutoProcessor", what)
    if not (getattr(processor, "chat_template", None) or hasattr(processor, "image_token")):
        raise ConfigError(f"{folder}: its {type(processor).__name__} takes no prompt beside a picture")
    return PictureCaptioner(model.to(best_device()), processor, max_words)
