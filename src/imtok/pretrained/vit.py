"""CLIP's and DINOv2's vision transformers, from a user's file: what FQGAN's branches learn to predict."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imtok.pretrained.networks import FrozenNetwork, load_named

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_OLD_BUFFER = "vision_model.embeddings.position_ids"  # in files of older versions of the library
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VisionTransformer(FrozenNetwork):
    """A vision transformer of the transformers library; its answer is the class token of the last layer.

    Args:
        model: takes normalized pictures of `resolution` and answers with `last_hidden_state`.
        dim: of the class token.
        mean: of the colours, in [0, 1], that the model was trained with.
        std: likewise.
        resolution: that the model wants.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        dim: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        resolution: int = 224,
    ) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = dim
        self.resolution = resolution
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def embed(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Class tokens of RGB pictures in [-1, 1], which are resized to a square (bicubic, antialiased)."""
        if images.shape[2:] != (self.resolution, self.resolution):
            images = F.interpolate(images, (self.resolution, self.resolution), mode="bicubic", antialias=True)
        pixels = (images + 1) / 2
        return self.model(pixel_values=(pixels - self.mean) / self.std).last_hidden_state[:, 0]


def load_clip_l14(weights: Path) -> VisionTransformer:
    """CLIP ViT-L/14: the class token before the last LayerNorm and the projection, 1024 channels (FQGAN-Dual)."""
    size: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    return load_clip(weights, **size, patch_size=14)


def load_clip_b16(weights: Path) -> VisionTransformer:
    """CLIP ViT-B/16, likewise, 768 channels (FQGAN-Triple's high level)."""
    return load_clip(weights, patch_size=16)


def load_clip(weights: Path, **settings: Any) -> VisionTransformer:
    """CLIP's vision half out of a whole CLIP's state dict, in the transformers library's names.

    Args:
        weights: the file.
        settings: of CLIPVisionConfig, where they differ from its defaults (ViT-B/32).
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**settings)
    model = CLIPVisionModel(config)
    other_half = ("text_model.", "text_projection", "visual_projection", "logit_scale", _OLD_BUFFER)
    load_named(getattr(model, "vision_model", model), weights, other_half, prefix="vision_model.")
    return VisionTransformer(model, config.hidden_size, _CLIP_MEAN, _CLIP_STD)


def load_dinov2_small(weights: Path) -> VisionTransformer:
    """DINOv2 ViT-S/14: the class token after the last LayerNorm, 384 channels (FQGAN-Triple's middle level)."""
    return load_dinov2(weights, hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518)


def load_dinov2(weights: Path, **settings: Any) -> VisionTransformer:
    """A DINOv2 from a state dict in the transformers library's names.

    Args:
        weights: the file.
        settings: of Dinov2Config, where they differ from its defaults.
    """
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(**settings)
    model = Dinov2Model(config)
    load_named(model, weights)
    return VisionTransformer(model, config.hidden_size, _IMAGENET_MEAN, _IMAGENET_STD)
