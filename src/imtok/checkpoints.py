"""Reading and writing of run folders and checkpoints, as tensors and plain dicts; no models are built here.

All access to a run folder goes through this module:

    RUN/config.json           the resolved config
    RUN/model.safetensors     weights for inference (the EMA weights where there are any)
    RUN/metrics.jsonl         one line per logged step
    RUN/previews/             pictures
    RUN/lock                  empty file, locked by the training process
    RUN/resume/step-00001234/ state for an exact resume: state.safetensors (or each rank's shard of it) and state.json

Everything but previews and the appended lines of metrics.jsonl is written under a temporary name and then renamed, so
that a process killed at any moment leaves a consistent folder.
"""

import argparse
import errno
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from imtok.config import FORMAT_VERSION, ConfigError, check_format, first_line, read_json

_NO_LOCK_ERRORS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of file systems without locks (NFS without its lock daemon, Lustre without `flock`).

Concurrent training into one folder is not prevented there.
"""


class _InertClass:
    """Inert stand-in for a trainer class that a checkpoint refers to next to its tensors."""


_ALLOWED_CLASSES = [
    argparse.Namespace,
    *(
        (_InertClass, f"{library}.callbacks.model_checkpoint.ModelCheckpoint")
        for library in ("pytorch_lightning", "lightning.pytorch")
    ),
]
"""Classes allowed next to tensors: training options, and the callback class that Lightning checkpoints refer to.

Lightning, which trained the taming models, stores its record of the best checkpoint under that class as the key.
"""
_PICKLE_PREFIXES = (b"PK", b"\x80")
"""First bytes of PyTorch checkpoints: a zip archive that contains a pickle, or a bare pickle."""


class RunFolder:
    """One training run on disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.model_file = self.path / "model.safetensors"
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.previews = self.path / "previews"

    def exists(self) -> bool:
        """Return whether a run has been started in this folder."""
        return self.config_file.is_file()

    def read_config(self) -> dict[str, Any]:
        """Read the resolved config.

        Raises:
            ConfigError: the folder holds no run, or config.json is broken or of a newer format.
        """
        if not self.exists():
            raise ConfigError(f"{self.path}: not a run folder (it has no config.json)")
        found = read_json(self.config_file)
        check_format(found, str(self.config_file))
        return found

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config, with `format_version` added."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2) + "\n")

    def read_model(self) -> dict[str, Tensor]:
        """Read the weights for inference.

        Raises:
            ConfigError: the run has not saved its weights yet, or the file is broken.
        """
        if not self.model_file.is_file():
            raise ConfigError(f"{self.path}: no model.safetensors yet; the run has not saved its weights")
        return load_tensors(self.model_file)

    def write_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Save the weights for inference."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_tensors(self.model_file, tensors)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all logged records; truncated lines (of a killed process) and lines in other formats are skipped."""
        records = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines() if self.metrics_file.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records

    def truncate_metrics(self, step: int) -> None:
        """Delete the records after `step`, which a resumed run will log again."""
        lines = [json.dumps(record) + "\n" for record in self.read_metrics() if record["step"] <= step]
        write_text(self.metrics_file, "".join(lines))

    def write_resume(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save the state after `step` and delete all others; do nothing if that state already exists."""
        if not self.resume_folder(step).exists():
            save_tensors(self.begin_resume(step) / "state.safetensors", tensors)
            self.finish_resume(step, values)

    def resume_folder(self, step: int) -> Path:
        """Return the folder of the state after `step`."""
        return self.path / "resume" / f"step-{step:08d}"

    def unfinished(self, step: int) -> Path:
        """Return the temporary folder in which the state after `step` is written."""
        return self.resume_folder(step).with_name(f"step-{step:08d}.tmp")

    def begin_resume(self, step: int) -> Path:
        """Create an empty folder for the tensors of the state after `step`; `finish_resume` gives it its final name."""
        temporary = self.unfinished(step)
        temporary.mkdir(parents=True, exist_ok=True)
        for file in temporary.iterdir():  # the folder stays: `check_vacant` recognizes an interrupted start by it
            file.unlink()
        return temporary

    def finish_resume(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the values, rename the folder to its final name, and delete all other states."""
        temporary, target = self.unfinished(step), self.resume_folder(step)
        write_text(temporary / "state.json", json.dumps({"format_version": FORMAT_VERSION, "step": step, **values}))
        _flush_to_disk(temporary)
        temporary.rename(target)
        _flush_to_disk(target.parent)
        self._delete_states(but=target)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold an exclusive lock on this folder; it is released if the process dies.

        Raises:
            ConfigError: another process is training into this folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock", timeout=0, fallback_to_soft=False)  # a soft lock would outlive a kill
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{self.path}: another process is training into it; let it end first") from None
        except OSError as error:
            if error.errno not in _NO_LOCK_ERRORS:
                raise
        try:
            yield
        finally:
            lock.release()

    def check_vacant(self) -> None:
        """Check that a run may be started here; leftovers of an interrupted start may be overwritten.

        Raises:
            ConfigError: the folder holds weights of another origin, or states of a run whose config is missing.
        """
        if steps := [state.name for state in self._whole_states() if state != self.resume_folder(0)]:
            raise ConfigError(
                f"{self.path}: has no config.json, but the state {steps[-1]} in resume/; put the file back, or name "
                "another folder"
            )
        if self.model_file.exists() and not self._states():
            raise ConfigError(f"{self.path}: holds a model.safetensors of something else; name another folder")

    def begin(self) -> None:
        """Delete the states that an interrupted start left behind."""
        self._delete_states(but=self.begin_resume(0))

    def amend_resume(self, step: int, values: Mapping[str, Any]) -> None:
        """Update some of the values of the state after `step`."""
        file = self.resume_folder(step) / "state.json"
        write_text(file, json.dumps({**read_json(file), **values}))

    def _states(self) -> list[Path]:
        """Return the folders of all states, complete and unfinished, by step."""
        return sorted((self.path / "resume").glob("step-*"))

    def _whole_states(self) -> list[Path]:
        return [state for state in self._states() if not state.name.endswith(".tmp")]

    def _delete_states(self, but: Path) -> None:
        for other in self._states():
            if other != but:
                shutil.rmtree(other, ignore_errors=True)

    def read_resume(self) -> tuple[Path, dict[str, Any]]:
        """Read the newest complete state: the folder with its tensors, and its values (with `step`).

        Raises:
            ConfigError: there is no complete state, or it is of a newer format.
        """
        if not (states := self._whole_states()):
            raise ConfigError(f"{self.path}: has no saved state in resume/ to go on from; start a new run")
        file = states[-1] / "state.json"
        values = read_json(file)
        check_format(values, str(file))
        return states[-1], values


def shipped_runs(section: str) -> dict[str, Path]:
    """Return the folders of imtok's shipped runs whose config has `section` (e.g. "generator"), sorted by name."""
    folders = sorted((Path(str(files("imtok"))) / "weights").glob("*/model.safetensors"))
    found = {file.parent.name: file.parent for file in folders}
    return {name: folder for name, folder in found.items() if section in RunFolder(folder).read_config()}


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load all tensors of a file onto the CPU, without executing any code from the file.

    Args:
        path: a .safetensors file, or a PyTorch checkpoint. Its state dict is the first of `ema`, `model` and
            `state_dict` that holds tensors, else the top level; EMA weights thus take precedence over raw ones, as in
            LlamaGen's own reconstructions. Training options (an `argparse.Namespace`) and Lightning's record of its
            best checkpoint may be stored next to the tensors and are left out.

    Raises:
        ConfigError: the file is missing or broken, or it is a pickle of anything but tensors and such records.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Plain containers are safe to unpickle; torch's warnings (old pickles) are covered by the error below.
        with torch.serialization.safe_globals(_ALLOWED_CLASSES), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with path.open("rb") as file:
            if not file.read(2).startswith(_PICKLE_PREFIXES):
                raise ConfigError(
                    f"{path}: not a readable checkpoint; is it a web page, or a pointer to a large file?"
                ) from None
        raise ConfigError(
            f"{path}: refused: holds more than tensors, and untrusted code is never run; if you trust it, "
            "load it with torch yourself and save its state dict alone"
        ) from None
    except Exception as error:  # torch may raise any exception on a broken file
        reason = first_line(error)
        raise ConfigError(f"{path}: not a readable checkpoint ({reason})") from None
    for key in ("ema", "model", "state_dict"):
        inside = state.get(key) if isinstance(state, dict) else None
        if isinstance(inside, dict) and any(isinstance(value, Tensor) for value in inside.values()):
            state = inside
            break
    if not isinstance(state, dict):
        raise ConfigError(f"{path}: holds a {type(state).__name__}, expected a dict of tensors")
    return {name: tensor for name, tensor in state.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def check_fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Check that tensors have the names and shapes of `wanted`.

    Raises:
        ConfigError: a name or shape differs; the one-line message begins with `where` and names the first mismatch.
    """
    mismatches = [f"{name} is missing" for name in wanted if name not in tensors]
    mismatches += [f"{name} is not part of it" for name in tensors if name not in wanted]
    mismatches += [
        f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if mismatches:
        more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
        raise ConfigError(f"{where}: {mismatches[0]}{more}")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file under a temporary name and rename it.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, temporary, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({first_line(error)})") from None
    _flush_to_disk(temporary)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush_to_disk(temporary)
    temporary.replace(path)


def _flush_to_disk(path: Path) -> None:
    """Flush a file's content to disk (fsync), or a folder's entries on systems that support it.

    Raises:
        OSError: the disk is full or fails.
    """
    folder = path.is_dir()
    with suppress(OSError) if folder else nullcontext():
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
