"""Causal language models: their weights without the output layer, their tokenizer, and their shape as data."""

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imtok.pretrained.packages import cache_folder, sha256_of
from imtok.pretrained.transformers_folder import open_model

_RUNTIME = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
"""Settings of a config.json that say nothing of a model's shape."""


@dataclass
class LanguageModel:
    """A language model in the registry.

    Attributes:
        model: of transformers' `AutoModel`, without the layer that predicts text.
        tokenizer: of the same.
        architecture: its config.json, as far as it says how the model is built.
        name: in the registry.
        sha256: of its files.
    """

    model: Any
    tokenizer: Any
    architecture: dict[str, Any]
    name: str = ""
    sha256: str = ""


def load_language_model(place: str | Path) -> LanguageModel:
    """A language model from a folder in transformers' layout, or from the hub's local cache by its id.

    Nothing is downloaded and nothing in the folder is executed.

    Raises:
        ConfigError: something else is there, or nothing; one line.
    """
    model, tokenizer = open_model(place, "AutoModel", "AutoTokenizer", "language model in transformers' layout")
    return LanguageModel(model, tokenizer, architecture_of(model.config))


def load_smollm2(gguf: Path) -> LanguageModel:
    """SmolLM2-135M-Instruct from its GGUF file; it is dequantized into the cache once, which takes a minute."""
    folder = cache_folder() / "converted" / f"smollm2-{sha256_of(gguf)[:12]}"
    if not (folder / "config.json").exists():
        from transformers import AutoModel, AutoTokenizer

        logging.getLogger(__name__).info("%s: dequantizing into %s", gguf.name, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(partial)
        quantized = AutoModel.from_pretrained(gguf.parent, **source)
        quantized.config.__dict__.pop("quantization_config", None)  # its tensors are plain numbers by now
        plain = AutoModel.from_config(quantized.config)
        plain.load_state_dict(quantized.state_dict())
        plain.half().save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(partial)
    return load_language_model(folder)


def architecture_of(config: Any) -> dict[str, Any]:
    """What of a transformers config says how a model is built, as `model_type` and further settings."""
    settings = {"model_type": config.model_type, **config.to_diff_dict()}
    return {name: value for name, value in settings.items() if name not in _RUNTIME}
