"""What somebody else needs to get the same numbers, beside the pictures and the weights."""

import inspect
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from PIL import features

from imtok.data.rows import as_unicode

LIBRARIES = ("imtok", "numpy", "pillow")
NETWORK_LIBRARIES = ("diffusers", "onnxruntime", "rapidocr", "torch-fidelity", "torchvision", "transformers")
"""Networks that numbers may come through are theirs, or run by them; not everybody has them."""
CODEC_LIBRARIES = ("jpg", "libjpeg_turbo", "webp")


def command_line(function: Callable[..., Any], words: Sequence[str], options: Mapping[str, Any]) -> str:
    """The command that does the same.

    Args:
        function: that the command calls.
        words: the verb, and what is named without an option.
        options: of the function, with the values that it was called with.
    """
    defaults = inspect.signature(function).parameters
    words = ["imtok", *words, "--out", "OUT"]
    for name, value in options.items():
        if value == defaults[name].default:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return as_unicode(shlex.join(words))


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
