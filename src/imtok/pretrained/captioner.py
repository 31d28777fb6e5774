"""Text generation by vision-language models: captions (TexTok, appendix D), and answers to questions."""

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
"""TexTok's caption prompt, without the name of the data set that the paper's prompt includes."""
TOKENS_PER_WORD, ANSWER_TOKENS = 2, 4


def without_thoughts(text: str) -> str:
    """Remove a model's reasoning from its output; return an empty text if the reasoning is unfinished."""
    _, ended, answer = text.rpartition("</think>")
    return answer.strip() if ended or "<think>" not in answer else ""


class VisionLanguageModel(FrozenNetwork):
    """A vision-language model that generates text about a picture by greedy decoding.

    Args:
        model: model loaded by transformers' `AutoModelForImageTextToText`.
        processor: processor of that model.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    @torch.no_grad()
    def generate_text(self, picture: UInt8[np.ndarray, "h w 3"], prompt: str, max_tokens: int) -> str:
        """Return the response to a prompt, of at most `max_tokens` tokens."""
        templated = bool(getattr(self.processor, "chat_template", None))
        if templated:
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False
            )
        else:
            text = f"{self.processor.image_token}\n{prompt}"
        inputs = self.processor(  # a chat template already includes the special tokens
            images=Image.fromarray(picture), text=text, return_tensors="pt", add_special_tokens=not templated
        ).to(self.model.device, self.model.dtype)
        new = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        # Decoder-only models return the prompt's tokens before the new ones.
        prompt_length = 0 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return without_thoughts(self.processor.decode(new[0, prompt_length:], skip_special_tokens=True))

    def answer(self, picture: UInt8[np.ndarray, "h w 3"], question: str) -> str:
        """Return the first word of the answer to a yes-or-no question, without punctuation."""
        words = self.generate_text(picture, f"{question} Answer yes or no.", ANSWER_TOKENS).split()
        return words[0].strip(".,:;!\"'") if words else ""


class PictureCaptioner:
    """Writes captions of pictures.

    Args:
        vlm: model that writes the captions.
        max_words: word limit that the prompt states; longer captions are truncated to it.
    """

    def __init__(self, vlm: VisionLanguageModel, max_words: int = 75) -> None:
        self.vlm, self.max_words = vlm, max_words

    def caption(self, picture: UInt8[np.ndarray, "h w 3"], label: str | None = None) -> str:
        """Return one caption.

        Args:
            picture: RGB picture.
            label: class of the picture, which the prompt then names.
        """
        words = self.vlm.generate_text(picture, self.prompt(label), TOKENS_PER_WORD * self.max_words).split()
        return " ".join(words[: self.max_words])

    def prompt(self, label: str | None) -> str:
        """Return the prompt for a picture of class `label`, or of unknown class."""
        name = None if label is None else label.replace("_", " ")
        of_class, the_class = ("", "it") if name is None else (f" of a {name}", f"the {name}")
        return PROMPT.format(of_class=of_class, the_class=the_class, word_count=self.max_words)


def load_captioner(folder: Path, max_words: int = 75) -> PictureCaptioner:
    """Load a captioner from a model folder (see `load_vlm`).

    Raises:
        ConfigError: the folder does not hold such a model (one-line message).
    """
    vlm = load_vlm(folder)
    vlm.freeze().to(best_device())
    return PictureCaptioner(vlm, max_words)


def load_vlm(folder: Path) -> VisionLanguageModel:
    """Load a model from a folder with config.json, the processor's files and *.safetensors; no code in it is executed.

    Raises:
        ConfigError: the folder does not hold such a model (one-line message).
    """
    what = "model that writes about pictures"
    model, processor = open_model(folder, "AutoModelForImageTextToText", "AutoProcessor", what)
    if not (getattr(processor, "chat_template", None) or hasattr(processor, "image_token")):
        raise ConfigError(f"{folder}: its {type(processor).__name__} takes no prompt beside a picture")
    return VisionLanguageModel(model, processor)
