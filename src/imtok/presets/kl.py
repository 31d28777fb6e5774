"""Presets of convolutional KL autoencoders such as Stable Diffusion's, which TexTok is compared with."""

import dataclasses
from collections.abc import Callable

from imtok.losses.discriminators import PatchDiscriminatorConfig
from imtok.presets.textok import baseline_nano
from imtok.tokenizers.continuous import ContinuousConfig
from imtok.tokenizers.vqgan import VQGANConfig
from imtok.training.run import RunConfig

LATENT_CHANNELS = 4
"""Latent channels of Stable Diffusion's autoencoder."""


def kl_nano() -> RunConfig:
    """A KL autoencoder for a laptop's CPU, 2.9M: 64 px to 256 tokens of 4 channels.

    It is trained like textok-nano, but with AdamW, since it is not a transformer, at a third of the learning rate.

    A DiT over its latents is the baseline in a miniature of TexTok's Figure 4. The paper uses SD-VAE there, whose
    published weights imtok can read from a folder of diffusers. The weight of the KL divergence is that of latent
    diffusion, 1e-6 relative to an error that is summed over the values of a picture, converted here for their mean.
    """
    return _kl("kl-nano", (1, 2, 4))


def kl_nano_f2() -> RunConfig:
    """kl-nano with 1,024 tokens, of 2 x 2 pixels each, 2.5M."""
    return _kl("kl-nano-f2", (1, 4))


def _kl(name: str, channel_multipliers: tuple[int, ...]) -> RunConfig:
    base = baseline_nano()
    return dataclasses.replace(
        base,
        name=name,
        tokenizer=VQGANConfig(
            channels=32,
            channel_multipliers=channel_multipliers,
            residual_blocks=1,
            attention=False,
            latent_channels=128,
            groups=4,
            quantizer=ContinuousConfig(codebook_dim=LATENT_CHANNELS, kl=True),
        ),
        losses=dataclasses.replace(base.losses, kl_weight=1e-6 / (3 * base.data.crop.resolution**2)),
        training=dataclasses.replace(
            base.training,
            optimizer=dataclasses.replace(base.training.optimizer, algorithm="adamw", learning_rate=1e-3),
        ),
        discriminator=PatchDiscriminatorConfig(),
    )


PRESETS: tuple[Callable[[], RunConfig], ...] = (kl_nano, kl_nano_f2)
