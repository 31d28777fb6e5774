"""Vision transformers of CLIP and DINOv2 from user-supplied files, whose features FQGAN's branches predict."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imtok.pretrained.networks import FrozenNetwork, load_named

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_OBSOLETE_BUFFER = "vision_model.embeddings.position_ids"  # stored by older versions of transformers
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VisionTransformer(FrozenNetwork):
    """A vision transformer of the transformers library that embeds a picture as the last layer's class token.

    Args:
        model: model that takes normalized pictures of size `resolution` and returns `last_hidden_state`.
        dim: dimension of the class token.
        mean: channel means of the model's input normalization, for pixels in [0, 1].
        std: channel standard deviations of the model's input normalization, for pixels in [0, 1].
        resolution: side of the model's square input in pixels.
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
        """Return class tokens of RGB pictures in [-1, 1], which are resized to `resolution` (bicubic, antialiased)."""
        if images.shape[2:] != (self.resolution, self.resolution):
            images = F.interpolate(images, (self.resolution, self.resolution), mode="bicubic", antialias=True)
        pixels = (images + 1) / 2
        return self.model(pixel_values=(pixels - self.mean) / self.std).last_hidden_state[:, 0]


def load_clip_l14(weights: Path) -> VisionTransformer:
    """Load CLIP ViT-L/14: the class token before the last LayerNorm and the projection, 1024 channels (FQGAN-Dual)."""
    size: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    return load_clip(weights, **size, patch_size=14)


def load_clip_b16(weights: Path) -> VisionTransformer:
    """Load CLIP ViT-B/16: the class token as in `load_clip_l14`, 768 channels (FQGAN-Triple's high level)."""
    return load_clip(weights, patch_size=16)


def load_clip(weights: Path, **settings: Any) -> VisionTransformer:
    """Load CLIP's vision encoder from the state dict of a whole CLIP with the transformers library's names.

    Args:
        weights: file with the state dict.
        settings: settings of `CLIPVisionConfig` that differ from its defaults (ViT-B/32).
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**settings)
    model = CLIPVisionModel(config)
    ignored = ("text_model.", "text_projection", "visual_projection", "logit_scale", _OBSOLETE_BUFFER)
    load_named(getattr(model, "vision_model", model), weights, ignored, prefix="vision_model.")
    return VisionTransformer(model, config.hidden_size, _CLIP_MEAN, _CLIP_STD)


def load_dinov2_small(weights: Path) -> VisionTransformer:
    """Load DINOv2 ViT-S/14: the class token after the last LayerNorm, 384 channels (FQGAN-Triple's middle level)."""
    return load_dinov2(weights, hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518)


def load_dinov2(weights: Path, **settings: Any) -> VisionTransformer:
    """Load a DINOv2 from a state dict with the transformers library's names.

    Args:
        weights: file with the state dict.
        settings: settings of `Dinov2Config` that differ from its defaults.
    """
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(**settings)
    model = Dinov2Model(config)
    load_named(model, weights)
    return VisionTransformer(model, config.hidden_size, _IMAGENET_MEAN, _IMAGENET_STD)
