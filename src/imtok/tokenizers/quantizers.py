"""Build any quantizer from its config."""

from typing import Annotated

import pydantic

from imtok.tokenizers.continuous import Continuous, ContinuousConfig
from imtok.tokenizers.ema_vq import EMAVectorQuantizer, EMAVQConfig
from imtok.tokenizers.factorized import FactorizedQuantizer, FactorizedVQConfig
from imtok.tokenizers.quantization import Quantizer
from imtok.tokenizers.vq import VectorQuantizer, VQConfig

QuantizerConfig = Annotated[
    EMAVQConfig | VQConfig | FactorizedVQConfig | ContinuousConfig, pydantic.Discriminator("kind")
]
"""Config of any bottleneck, discriminated by `kind`."""


def build_quantizer(config: EMAVQConfig | VQConfig | FactorizedVQConfig | ContinuousConfig) -> Quantizer:
    """Build an untrained quantizer."""
    match config:
        case EMAVQConfig():
            return EMAVectorQuantizer(config)
        case VQConfig():
            return VectorQuantizer(config)
        case FactorizedVQConfig():
            return FactorizedQuantizer(config)
        case ContinuousConfig():
            return Continuous(config)
