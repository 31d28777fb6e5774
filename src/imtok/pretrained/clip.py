"""A whole CLIP of the transformers library: how well a picture fits a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from imtok.pretrained.networks import FrozenNetwork
from imtok.pretrained.transformers_folder import open_model


class CLIP(FrozenNetwork):
    """Pictures and texts in one space, in fp32.

    Args:
        model: a CLIPModel.
        processor: its CLIPProcessor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model.float(), processor
        self.max_tokens: int = model.config.text_config.max_position_embeddings

    @property
    def size(self) -> str:
        """What kind of CLIP it is."""
        vision = self.model.config.vision_config
        return f"ViT of {vision.hidden_size} channels, patches of {vision.patch_size} at {vision.image_size} px"

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than what the model reads."""
        return len(self.processor.tokenizer(text)["input_ids"]) > self.max_tokens

    def similarity(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        """The cosine between each picture and its text; longer texts are cut.

        Args:
            pictures: RGB; the processor resizes and crops them as the model wants.
            texts: one a picture.
        """
        seen, read = self.embed(pictures, texts)
        return F.cosine_similarity(seen, read).cpu()

    def embed(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], texts: Sequence[str]
    ) -> tuple[Float[Tensor, "pictures dim"], Float[Tensor, "texts dim"]]:
        """Vectors of length 1 of pictures and of texts, as many as there are of each."""
        inputs = self.processor(
            text=list(texts),
            images=[Image.fromarray(picture) for picture in pictures],  # of arrays it would guess where the colours are
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
        ).to(self.model.device)
        found = self.model(**inputs)
        return found.image_embeds, found.text_embeds


def load_clip(folder: Path) -> CLIP:
    """A CLIPModel from a folder in the transformers library's layout; nothing in it is run.

    Raises:
        ConfigError: something else is there; one line.
    """
    model, processor = open_model(folder, "CLIPModel", "CLIPProcessor", "CLIP with its tokenizer and processor")
    return CLIP(model, processor)
