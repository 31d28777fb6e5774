"""Report on this installation: versions, devices, and missing parts."""

import platform
import re
import shutil
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from imtok import pretrained

_PACKAGES = ("imtok", "torch", "torchvision", "numpy", "pyarrow", "rapidocr", "onnx", "onnxruntime", "diffusers")
_EXTRAS = ("networks", "fonts", "peers", "plots")
_ABSENT = "not installed"


def report() -> str:
    """Return a report of versions, devices, extras and networks, one line each."""
    lines = [f"python      {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [f"{name:11} {_version(name)}" for name in _PACKAGES]
    for extra in _EXTRAS:
        missing = [name for name in _packages_of(extra) if _version(name) == _ABSENT]
        listed = f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
        lines.append(f"{f'[{extra}]':11} {f'lacks {listed}: pip install imtok[{extra}]' if missing else 'complete'}")
    lines.append(f"cpu         {torch.get_num_threads()} threads")
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines.append(f"cuda        {', '.join(cuda) or 'none'}")
    lines.append(f"mps         {'yes' if torch.backends.mps.is_available() else 'none'}")
    lines.append(f"tesseract   {shutil.which('tesseract') or 'none (a second text judge; optional)'}")
    rows = pretrained.status()
    lines.append(f"networks    {sum(row.present for row in rows)} of {len(rows)} present; see imtok weights")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _ABSENT


def _packages_of(extra: str) -> list[str]:
    """Return the names of the packages that an extra of imtok requires."""
    packages = defaultdict[str, list[str]](list)
    for requirement in requires("imtok") or ():
        name, marker = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and marker:
            packages[marker[1]].append(name[0])
    return packages[extra]
