"""Causal language models: weights without the output layer, tokenizer, and architecture settings."""

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imtok.pretrained.packages import cache_folder, sha256_of
from imtok.pretrained.transformers_folder import open_model

_RUNTIME_SETTINGS = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
"""Settings in config.json that do not define a model's architecture."""


@dataclass
class LanguageModel:
    """A causal language model, from the registry or from a folder.

    Attributes:
        model: model loaded by transformers' `AutoModel`, without the output layer that predicts tokens.
        tokenizer: tokenizer of the model.
        architecture: the settings in config.json that define the model's architecture.
        name: name in the registry, set by it.
        sha256: digest of the model's files, set by the registry.
    """

    model: Any
    tokenizer: Any
    architecture: dict[str, Any]
    name: str = ""
    sha256: str = ""


def load_language_model(place: str | Path) -> LanguageModel:
    """Load a language model from a folder in transformers' layout, or by its id from the Hub's local cache.

    Nothing is downloaded and no code in the folder is executed.

    Raises:
        ConfigError: the model is missing, or is not a language model (one-line message).
    """
    model, tokenizer = open_model(place, "AutoModel", "AutoTokenizer", "language model in transformers' layout")
    return LanguageModel(model, tokenizer, architecture_of(model.config))


def load_smollm2(gguf: Path) -> LanguageModel:
    """Load SmolLM2-135M-Instruct from its GGUF file; the first call dequantizes it into the cache (about a minute)."""
    folder = cache_folder() / "converted" / f"smollm2-{sha256_of(gguf)[:12]}"
    if not (folder / "config.json").exists():
        from transformers import AutoModel, AutoTokenizer

        logging.getLogger(__name__).info("%s: dequantizing into %s", gguf.name, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(partial)
        quantized = AutoModel.from_pretrained(gguf.parent, **source)
        quantized.config.__dict__.pop("quantization_config", None)  # its tensors are dequantized by now
        plain = AutoModel.from_config(quantized.config)
        plain.load_state_dict(quantized.state_dict())
        plain.half().save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process has created it first
            shutil.rmtree(partial)
    return load_language_model(folder)


def architecture_of(config: Any) -> dict[str, Any]:
    """Return the settings of a transformers config that define a model's architecture, including `model_type`."""
    settings = {"model_type": config.model_type, **config.to_diff_dict()}
    return {name: value for name, value in settings.items() if name not in _RUNTIME_SETTINGS}
