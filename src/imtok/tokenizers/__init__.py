"""Pictures to latents and codes, and back."""

from imtok.tokenizers.base import Encoding, Tokenizer
from imtok.tokenizers.catalog import TokenizerConfig, build, load, shipped
from imtok.tokenizers.quantizers import EMAVQConfig, FactorizedVQConfig, VQConfig
from imtok.tokenizers.vqgan import VQGAN, AdapterConfig, VQGANConfig

__all__ = [
    "VQGAN",
    "AdapterConfig",
    "EMAVQConfig",
    "Encoding",
    "FactorizedVQConfig",
    "Tokenizer",
    "TokenizerConfig",
    "VQConfig",
    "VQGANConfig",
    "build",
    "load",
    "shipped",
]
