"""CLIP (both encoders) from the transformers library, for the similarity of pictures and texts."""

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
    """CLIP, which embeds pictures and texts into a joint space, in fp32.

    Args:
        model: a `CLIPModel`.
        processor: the model's `CLIPProcessor`.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model.float(), processor
        self.max_tokens: int = model.config.text_config.max_position_embeddings

    @property
    def size(self) -> str:
        """Description of the vision encoder: width, patch size and resolution."""
        vision = self.model.config.vision_config
        return f"ViT of {vision.hidden_size} channels, patches of {vision.patch_size} at {vision.image_size} px"

    def is_cut(self, text: str) -> bool:
        """Return whether a text exceeds the model's maximum length and would be truncated."""
        return len(self.processor.tokenizer(text)["input_ids"]) > self.max_tokens

    def similarity(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        """Return the cosine similarity of each picture and its text; texts beyond the maximum length are truncated.

        Args:
            pictures: RGB pictures; the processor resizes and crops them for the model.
            texts: one text per picture.
        """
        picture_embeddings, text_embeddings = self.embed(pictures, texts)
        return F.cosine_similarity(picture_embeddings, text_embeddings).cpu()

    def embed(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], texts: Sequence[str]
    ) -> tuple[Float[Tensor, "pictures dim"], Float[Tensor, "texts dim"]]:
        """Return L2-normalized embeddings of pictures and of texts; their numbers may differ."""
        inputs = self.processor(
            text=list(texts),
            images=[Image.fromarray(picture) for picture in pictures],  # for arrays it would guess the channel axis
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
        ).to(self.model.device)
        outputs = self.model(**inputs)
        return outputs.image_embeds, outputs.text_embeds


def load_clip(folder: Path) -> CLIP:
    """Load a CLIPModel from a folder in the transformers library's layout; no code in it is executed.

    Raises:
        ConfigError: the folder does not hold such a model (one-line message).
    """
    model, processor = open_model(folder, "CLIPModel", "CLIPProcessor", "CLIP with its tokenizer and processor")
    return CLIP(model, processor)
