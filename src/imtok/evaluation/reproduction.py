"""What reproducing the scores requires besides pictures and weights: the command and the software versions."""

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
"""Libraries that provide or run networks behind metrics; optional."""
CODEC_LIBRARIES = ("jpg", "libjpeg_turbo", "webp")


def command_line(function: Callable[..., Any], words: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return the command line that repeats a call.

    Args:
        function: the function that the command calls.
        words: the verb and the positional arguments.
        options: the function's keyword arguments with the values of the call.
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
    """Return the versions of Python, of the libraries that the scores depend on, and of Pillow's codecs."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    found |= {library: version(library) for library in LIBRARIES}
    found["torch"] = str(torch.__version__)  # includes the build, such as the CUDA version
    for library in NETWORK_LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found | {library: features.version(library) or "" for library in CODEC_LIBRARIES if features.check(library)}
