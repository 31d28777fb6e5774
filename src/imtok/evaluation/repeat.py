"""What somebody else needs to get the same numbers, beside the pictures and the weights."""

import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from PIL import features

LIBRARIES = ("imtok", "numpy", "pillow")
NETWORK_LIBRARIES = ("torch-fidelity", "transformers")
"""They define networks that numbers may come through; not everybody has them."""
CODEC_LIBRARIES = ("jpg", "libjpeg_turbo", "webp")


def command_line(tokenizers: Sequence[str], data: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command that does the same.

    Args:
        tokenizers: as they were named.
        data: likewise.
        options: by their names in Python, with the values that differ from the default.
    """
    return _spell(["evaluate", *tokenizers, "--data", *data], options)


def generated_command_line(pictures: str, options: Mapping[str, Any]) -> str:
    """Likewise for generated pictures, as they were named."""
    return _spell(["evaluate-generated", pictures], options)


def _spell(verb: Sequence[str], options: Mapping[str, Any]) -> str:
    words = ["imtok", *verb, "--out", "OUT"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return shlex.join(words)


@cache
def versions() -> dict[str, str]:
    """Of Python, of the libraries that numbers depend on, and of Pillow's codecs."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    found |= {library: version(library) for library in LIBRARIES}
    found["torch"] = str(torch.__version__)  # with its build, for CUDA or not
    for library in NETWORK_LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found | {library: features.version(library) or "" for library in CODEC_LIBRARIES if features.check(library)}
