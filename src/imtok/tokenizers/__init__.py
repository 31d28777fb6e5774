"""Pictures to latents and codes, and back."""

from imtok.tokenizers.base import Encoding, Tokenizer
from imtok.tokenizers.catalog import TokenizerConfig, build, load, shipped
from imtok.tokenizers.quantizers import EMAVQConfig
from imtok.tokenizers.vqgan import VQGAN, VQGANConfig

__all__ = [
    "VQGAN",
    "EMAVQConfig",
    "Encoding",
    "Tokenizer",
    "TokenizerConfig",
    "VQGANConfig",
    "build",
    "load",
    "shipped",
]
