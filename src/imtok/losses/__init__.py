"""Tensors in, named scalars out."""

from imtok.losses.adversarial import LeCAM, discriminator_loss, generator_loss, r1_penalty
from imtok.losses.discriminators import (
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    StyleDiscriminator,
    StyleDiscriminatorConfig,
)
from imtok.losses.reconstruction import l1, l2, ocr_perceptual, perceptual_distance
from imtok.losses.regions import FaceLossConfig, TextLossConfig, face_loss, text_loss

__all__ = [
    "FaceLossConfig",
    "LeCAM",
    "PatchDiscriminator",
    "PatchDiscriminatorConfig",
    "StyleDiscriminator",
    "StyleDiscriminatorConfig",
    "TextLossConfig",
    "discriminator_loss",
    "face_loss",
    "generator_loss",
    "l1",
    "l2",
    "ocr_perceptual",
    "perceptual_distance",
    "r1_penalty",
    "text_loss",
]
