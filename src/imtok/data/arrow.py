"""Reading and writing of Arrow files; local files are memory-mapped."""

from typing import Any

import pyarrow as pa

from imtok.config import first_line
from imtok.data.addresses import local_place, locate, open_file
from imtok.data.sample import DataError

OPEN_FILES = 128
"""Arrow files kept open at once: a large set has more parts than a process may open files."""


def open_arrow(path: str) -> Any:
    """Return a reader of an Arrow file: a local file is memory-mapped, a remote one is read as needed.

    Raises:
        DataError: the file is not an Arrow file, or is truncated.
    """
    place = local_place(path)
    try:
        return pa.ipc.open_file(open_file(path) if place is None else pa.memory_map(place))
    except pa.ArrowInvalid as error:
        reason = first_line(error)
        raise DataError(
            f"{path}: not a readable Arrow file ({reason}); delete it, and call again what wrote it"
        ) from None


def write_arrow(path: str, table: pa.Table, rows: int) -> None:
    """Write a table under a temporary name and rename it; `rows` is the number of rows per record batch."""
    filesystem, place = locate(path)
    with filesystem.open(f"{place}.partial", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    filesystem.mv(f"{place}.partial", place)
