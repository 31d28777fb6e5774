"""Loading of transformers models from folders, without executing code in them and without downloads."""

from pathlib import Path
from typing import Any

from imtok.config import ConfigError, first_line, is_out_of_memory


def open_model(place: str | Path, model: str, reader: str, what: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer or processor.

    Args:
        place: a folder with config.json and *.safetensors, or a model id in the Hub's local cache.
        model: name of the transformers class of the model, such as "AutoModelForCausalLM".
        reader: name of the transformers class of the tokenizer or processor, such as "AutoTokenizer".
        what: description of the expected model for error messages.

    Raises:
        ConfigError: the model is missing, or is of another kind (one-line message).
    """
    processor = open_part(reader, place, what)
    return open_part(model, place, what, dtype="auto", use_safetensors=True), processor


def open_part(part: str, place: str | Path, what: str, **options: Any) -> Any:
    """Load one part of a model, such as its config or its tokenizer.

    Args:
        part: name of the transformers class.
        place: folder or model id; see `open_model`.
        what: description of the expected model for error messages.
        options: further arguments of the class's `from_pretrained`.

    Raises:
        ConfigError: see `open_model`.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(f"{place}: to open it, `pip install 'imtok[networks]'`") from None
    if (Path(place) / "adapter_config.json").exists():  # it could refer to further files to load
        raise ConfigError(f"{place}: holds an adapter; give a folder with the whole model")
    try:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        return getattr(transformers, part).from_pretrained(place, **local, **options)
    except Exception as error:  # transformers and its dependencies may raise any exception
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{place}: no {what} ({first_line(error)})") from None
