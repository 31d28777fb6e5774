"""Every quantizer by its config."""

from typing import Annotated

import pydantic

from imtok.tokenizers.ema_vq import EMAVectorQuantizer, EMAVQConfig
from imtok.tokenizers.factorized import FactorizedQuantizer, FactorizedVQConfig
from imtok.tokenizers.quantization import Quantizer
from imtok.tokenizers.vq import VectorQuantizer, VQConfig

QuantizerConfig = Annotated[EMAVQConfig | VQConfig | FactorizedVQConfig, pydantic.Discriminator("kind")]
"""Any quantizer's config; `kind` says which."""


def build_quantizer(config: EMAVQConfig | VQConfig | FactorizedVQConfig) -> Quantizer:
    """A fresh quantizer."""
    if isinstance(config, EMAVQConfig):
        return EMAVectorQuantizer(config)
    return VectorQuantizer(config) if isinstance(config, VQConfig) else FactorizedQuantizer(config)
