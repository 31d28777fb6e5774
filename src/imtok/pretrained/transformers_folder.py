"""A model of the transformers library from a folder; nothing in the folder is executed and nothing is downloaded."""

from pathlib import Path
from typing import Any

from imtok.config import ConfigError, first_line, is_out_of_memory


def open_model(place: str | Path, model: str, reader: str, what: str) -> tuple[Any, Any]:
    """A model and what reads its inputs.

    Args:
        place: a folder with config.json and *.safetensors, or an id in the hub's local cache.
        model: the library's class that opens it, such as "AutoModelForCausalLM".
        reader: likewise, such as "AutoTokenizer".
        what: should be there, for the error.

    Raises:
        ConfigError: something else is there, or nothing; one line.
    """
    found = open_part(reader, place, what)
    return open_part(model, place, what, dtype="auto", use_safetensors=True), found


def open_part(part: str, place: str | Path, what: str, **options: Any) -> Any:
    """What one class of the library makes of a folder.

    Args:
        part: the class.
        place: see `open_model`.
        what: likewise.
        options: for its `from_pretrained`.

    Raises:
        ConfigError: see `open_model`.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(f"{place}: to open it, `pip install 'imtok[networks]'`") from None
    if (Path(place) / "adapter_config.json").exists():  # it could name further files to load
        raise ConfigError(f"{place}: holds an adapter; give a folder with the whole model")
    try:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        return getattr(transformers, part).from_pretrained(place, **local, **options)
    except Exception as error:  # whatever the library and those below it think of the files
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{place}: no {what} ({first_line(error)})") from None
