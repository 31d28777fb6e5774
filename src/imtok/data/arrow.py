"""Arrow files, mapped into memory where they are local."""

from typing import Any

import fsspec
import pyarrow as pa


def open_arrow(path: str) -> Any:
    """An Arrow file's reader: a local file is mapped into memory, a remote one is read as needed."""
    filesystem, place = fsspec.url_to_fs(path)
    local = "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))
    return pa.ipc.open_file(pa.memory_map(place) if local else filesystem.open(place, "rb"))
