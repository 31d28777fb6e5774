"""Image tokenizers: training, evaluation, and image generation from their tokens."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from imtok import presets as presets
    from imtok.data.annotate import annotate as annotate
    from imtok.data.pictures import load_images as load_images
    from imtok.data.pictures import save_images as save_images
    from imtok.data.synthetic import synthesize as synthesize
    from imtok.evaluation.evaluate import evaluate as evaluate
    from imtok.evaluation.generated import evaluate_generated as evaluate_generated
    from imtok.evaluation.reconstruct import reconstruct as reconstruct
    from imtok.generators.catalog import load as load_generator
    from imtok.generators.generate import generate as generate
    from imtok.presets import create_tokenizer as create_tokenizer
    from imtok.tokenizers import load as load_tokenizer
    from imtok.tokenizers.encode import encode_pictures as encode_pictures
    from imtok.training.launch import train as train

_LAZY_IMPORTS = {
    "annotate": "imtok.data.annotate:annotate",
    "create_tokenizer": "imtok.presets:create_tokenizer",
    "encode_pictures": "imtok.tokenizers.encode:encode_pictures",
    "evaluate": "imtok.evaluation.evaluate:evaluate",
    "evaluate_generated": "imtok.evaluation.generated:evaluate_generated",
    "generate": "imtok.generators.generate:generate",
    "load_generator": "imtok.generators.catalog:load",
    "load_images": "imtok.data.pictures:load_images",
    "load_tokenizer": "imtok.tokenizers.catalog:load",
    "presets": "imtok.presets",
    "reconstruct": "imtok.evaluation.reconstruct:reconstruct",
    "save_images": "imtok.data.pictures:save_images",
    "synthesize": "imtok.data.synthetic:synthesize",
    "train": "imtok.training.launch:train",
}

__all__ = [
    "annotate",
    "create_tokenizer",
    "encode_pictures",
    "evaluate",
    "evaluate_generated",
    "generate",
    "load_generator",
    "load_images",
    "load_tokenizer",
    "presets",
    "reconstruct",
    "save_images",
    "synthesize",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import imtok` and `imtok --help` do not import torch."""
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'imtok' has no attribute {name!r}")
    module, _, attribute = _LAZY_IMPORTS[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
