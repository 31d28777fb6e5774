"""Tensors in, named scalars out."""

from imtok.losses.adversarial import (
    LeCAM,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    discriminator_loss,
    generator_loss,
)
from imtok.losses.reconstruction import l1, l2, ocr_perceptual, perceptual_distance
from imtok.losses.regions import FaceLossConfig, TextLossConfig, face_loss, text_loss

__all__ = [
    "FaceLossConfig",
    "LeCAM",
    "PatchDiscriminator",
    "PatchDiscriminatorConfig",
    "TextLossConfig",
    "discriminator_loss",
    "face_loss",
    "generator_loss",
    "l1",
    "l2",
    "ocr_perceptual",
    "perceptual_distance",
    "text_loss",
]
