"""What a vision-language model says of pictures: captions (TexTok, appendix D), and answers to questions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from imtok.config import ConfigError
from imtok.layers.collective import best_device
from imtok.pretrained.networks import FrozenNetwork
from imtok.pretrained.transformers_folder import open_model

PROMPT = (
    "Describe an image{of_class} in a single continuous detailed paragraph, using no more than {word_count} words. "
    "Include descriptions of the appearance, colors, textures, size, environment, and any notable features or actions. "
    "Make sure to provide a vivid and engaging description that captures the essence of {the_class}. Output only the "
    "description without any additional words or commentary and the description must not exceed {word_count} words."
)
"""TexTok's prompt; the paper's also names the data set."""
TOKENS_PER_WORD, ANSWER_TOKENS = 2, 4


def without_thoughts(said: str) -> str:
    """What a model says after it has thought aloud; nothing if it has not come to an end with that."""
    _, ended, answer = said.rpartition("</think>")
    return answer.strip() if ended or "<think>" not in answer else ""


class VisionLanguageModel(FrozenNetwork):
    """Says something about a picture, always the same (no sampling).

    Args:
        model: of transformers' `AutoModelForImageTextToText`.
        processor: of the same model.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    @torch.no_grad()
    def generate_text(self, picture: UInt8[np.ndarray, "h w 3"], prompt: str, max_tokens: int) -> str:
        """What it says to a prompt, in at most so many tokens."""
        templated = bool(getattr(self.processor, "chat_template", None))
        if templated:
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            asked = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False
            )
        else:
            asked = f"{self.processor.image_token}\n{prompt}"
        given = self.processor(  # a template writes its special tokens itself
            images=Image.fromarray(picture), text=asked, return_tensors="pt", add_special_tokens=not templated
        ).to(self.model.device, self.model.dtype)
        new = self.model.generate(**given, max_new_tokens=max_tokens, do_sample=False)
        repeated = 0 if self.model.config.is_encoder_decoder else given["input_ids"].shape[1]  # of the prompt
        return without_thoughts(self.processor.decode(new[0, repeated:], skip_special_tokens=True))

    def answer(self, picture: UInt8[np.ndarray, "h w 3"], question: str) -> str:
        """Its first word to a question that can be answered by yes or no, without punctuation."""
        words = self.generate_text(picture, f"{question} Answer yes or no.", ANSWER_TOKENS).split()
        return words[0].strip(".,:;!\"'") if words else ""


class PictureCaptioner:
    """Writes captions of pictures.

    Args:
        vlm: writes them.
        max_words: longer captions are cut; the prompt asks for no more.
    """

    def __init__(self, vlm: VisionLanguageModel, max_words: int = 75) -> None:
        self.vlm, self.max_words = vlm, max_words

    def caption(self, picture: UInt8[np.ndarray, "h w 3"], label: str | None = None) -> str:
        """One caption.

        Args:
            picture: RGB.
            label: its class, which the prompt then names.
        """
        words = self.vlm.generate_text(picture, self.prompt(label), TOKENS_PER_WORD * self.max_words).split()
        return " ".join(words[: self.max_words])

    def prompt(self, label: str | None) -> str:
        """What the model is asked."""
        name = None if label is None else label.replace("_", " ")
        of_class, the_class = ("", "it") if name is None else (f" of a {name}", f"the {name}")
        return PROMPT.format(of_class=of_class, the_class=the_class, word_count=self.max_words)


def load_captioner(folder: Path, max_words: int = 75) -> PictureCaptioner:
    """A captioner from a folder, as `load_vlm` wants it.

    Raises:
        ConfigError: the folder holds something else; one line.
    """
    vlm = load_vlm(folder)
    vlm.freeze().to(best_device())
    return PictureCaptioner(vlm, max_words)


def load_vlm(folder: Path) -> VisionLanguageModel:
    """A model from a folder with config.json, the processor's files and *.safetensors; nothing in it is executed.

    Raises:
        ConfigError: the folder holds something else; one line.
    """
    what = "model that writes about pictures"
    model, processor = open_model(folder, "AutoModelForImageTextToText", "AutoProcessor", what)
    if not (getattr(processor, "chat_template", None) or hasattr(processor, "image_token")):
        raise ConfigError(f"{folder}: its {type(processor).__name__} takes no prompt beside a picture")
    return VisionLanguageModel(model, processor)
