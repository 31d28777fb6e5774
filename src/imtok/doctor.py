"""What this installation can do."""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch

from imtok import pretrained

_PACKAGES = ("imtok", "torch", "torchvision", "numpy", "pyarrow", "rapidocr", "onnx", "onnxruntime", "diffusers")


def report() -> str:
    """Versions, devices, extras and networks, one line each."""
    lines = [f"python      {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [f"{name:11} {_version(name)}" for name in _PACKAGES]
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
        return "not installed"
