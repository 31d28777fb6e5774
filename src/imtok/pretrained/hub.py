"""Files from the Hugging Face Hub, for networks that no package contains."""

from pathlib import Path

from imtok.config import ConfigError, first_line

PREFIX = "hf://"


def find_hub_file(address: str, download: bool = False) -> Path | None:
    """Return the local copy of a Hub file, or None if there is none.

    Args:
        address: `hf://owner/repository/path/in/repository`, optionally with `@revision` after the repository.
        download: whether to download the file if there is no local copy.

    Raises:
        ConfigError: the address is invalid, or huggingface_hub is not installed.
        OSError: the download failed.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(f"{address}: to look there, `pip install 'imtok[networks]'`") from None

    owner, _, rest = address.removeprefix(PREFIX).partition("/")
    repository, _, path = rest.partition("/")
    name, _, revision = repository.partition("@")
    if not (address.startswith(PREFIX) and owner and name and path):
        raise ConfigError(f"{address}: expected hf://owner/repository/path, optionally with @revision")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", path, revision=revision or None, local_files_only=not download))
    except HFValidationError as error:
        raise ConfigError(f"{address}: no address of the hub ({first_line(error)})") from None
    except LocalEntryNotFoundError as error:
        if download:
            raise OSError(f"{address} could not be downloaded: {first_line(error)}") from None
        return None
