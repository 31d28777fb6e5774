"""Reading of trained constants from a TensorFlow Lite file, for networks that are reimplemented here as modules."""

from pathlib import Path

import numpy as np

_FLOAT32 = 0  # value in TFLite's TensorType


def read_constants(path: Path) -> list[np.ndarray]:
    """Read the float constants of a TFLite file in the order in which its operators use them.

    Only the few necessary fields of TFLite's schema are read, by their numbers in the schema.
    """
    model = _root(path.read_bytes())
    subgraph = _tables(model, 2)[0]
    tensors, operators, buffers = _tables(subgraph, 0), _tables(subgraph, 3), _tables(model, 4)
    constants = []
    for operator in operators:
        for index in _integers(operator, 1):
            if index < 0:  # an omitted optional input
                continue
            tensor = tensors[index]
            data = _bytes(buffers[_integer(tensor, 2)], 0)
            if data and _integer(tensor, 1, bits=8) == _FLOAT32:
                constants.append(np.frombuffer(data, "<f4").reshape(_integers(tensor, 0)))
    return constants


def _root(data: bytes):  # a flatbuffers Table; the package has no type annotations
    from flatbuffers import encode, number_types
    from flatbuffers.table import Table

    return Table(bytearray(data), encode.Get(number_types.UOffsetTFlags.packer_type, data, 0))


def _offset(table, field: int) -> int:
    return table.Offset(4 + 2 * field)


def _tables(table, field: int) -> list:
    from flatbuffers.table import Table

    offset = _offset(table, field)
    start = table.Vector(offset) if offset else 0
    length = table.VectorLen(offset) if offset else 0
    return [Table(table.Bytes, table.Indirect(start + 4 * index)) for index in range(length)]


def _integers(table, field: int) -> list[int]:
    from flatbuffers import number_types

    offset = _offset(table, field)
    return table.GetVectorAsNumpy(number_types.Int32Flags, offset).tolist() if offset else []


def _integer(table, field: int, bits: int = 32) -> int:
    from flatbuffers import number_types

    kind = number_types.Uint32Flags if bits == 32 else number_types.Int8Flags
    offset = _offset(table, field)
    return table.Get(kind, table.Pos + offset) if offset else 0


def _bytes(table, field: int) -> bytes:
    from flatbuffers import number_types

    offset = _offset(table, field)
    return table.GetVectorAsNumpy(number_types.Uint8Flags, offset).tobytes() if offset else b""
