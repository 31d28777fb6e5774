"""Tokenizers: models that encode pictures to latents or codes, and decode them."""

from imtok.tokenizers.base import Encoding, Tokenizer
from imtok.tokenizers.catalog import TokenizerConfig, build, load, shipped
from imtok.tokenizers.continuous import ContinuousConfig
from imtok.tokenizers.quantizers import EMAVQConfig, FactorizedVQConfig, VQConfig
from imtok.tokenizers.text import TextConfig
from imtok.tokenizers.textok import TexTok, TexTokConfig
from imtok.tokenizers.vqgan import VQGAN, AdapterConfig, VQGANConfig

__all__ = [
    "VQGAN",
    "AdapterConfig",
    "ContinuousConfig",
    "EMAVQConfig",
    "Encoding",
    "FactorizedVQConfig",
    "TexTok",
    "TexTokConfig",
    "TextConfig",
    "Tokenizer",
    "TokenizerConfig",
    "VQConfig",
    "VQGANConfig",
    "build",
    "load",
    "shipped",
]
