"""The run folder's only reader and writer. Tensors and plain dicts go in and come out; nothing is built here.

    RUN/config.json           the resolved config
    RUN/model.safetensors     weights for inference (the EMA weights where there are any)
    RUN/metrics.jsonl         one line per logged step
    RUN/previews/             pictures
    RUN/lock                  empty; held by the process that trains
    RUN/resume/step-00001234/ everything that exact resume needs: state.safetensors (or each rank's share of it) and
                              state.json

Everything but previews is written under a temporary name and renamed: a kill at any moment leaves a whole folder.
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

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without locks answer (NFS without its lock daemon, Lustre without `flock`): nobody is kept out."""


class _Inert:
    """In place of a trainer's class that a checkpoint names beside its tensors; it can do nothing."""


_HARMLESS = [
    argparse.Namespace,
    *(
        (_Inert, f"{library}.callbacks.model_checkpoint.ModelCheckpoint")
        for library in ("pytorch_lightning", "lightning.pytorch")
    ),
]
"""What may lie beside tensors: options, and the key under which Lightning, which trained taming's, notes its best."""
_PICKLED = (b"PK", b"\x80")
"""How PyTorch's checkpoints begin: a zip archive with a pickle in it, or the pickle itself."""


class RunFolder:
    """One training run on disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.model_file = self.path / "model.safetensors"
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.previews = self.path / "previews"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.is_file()

    def read_config(self) -> dict[str, Any]:
        """The resolved config.

        Raises:
            ConfigError: no run here, a broken file, or one of a newer format.
        """
        if not self.exists():
            raise ConfigError(f"{self.path}: not a run folder (it has no config.json)")
        found = read_json(self.config_file)
        check_format(found, str(self.config_file))
        return found

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Save the resolved config; `format_version` is added."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2) + "\n")

    def read_model(self) -> dict[str, Tensor]:
        """The weights for inference.

        Raises:
            ConfigError: there are none yet, or the file is broken.
        """
        if not self.model_file.is_file():
            raise ConfigError(f"{self.path}: no model.safetensors yet; the run has not saved its weights")
        return load_tensors(self.model_file)

    def write_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Save the weights for inference."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_tensors(self.model_file, tensors)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All logged lines; a line that a kill cut short, or that is none of ours, is left out."""
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
        """Drop the lines after `step`, which a resumed run will log again."""
        lines = [json.dumps(record) + "\n" for record in self.read_metrics() if record["step"] <= step]
        write_text(self.metrics_file, "".join(lines))

    def write_resume(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save the state after `step`, then delete older ones; a state that is there already stays."""
        if not self.resume_folder(step).exists():
            save_tensors(self.begin_resume(step) / "state.safetensors", tensors)
            self.finish_resume(step, values)

    def resume_folder(self, step: int) -> Path:
        """Where the state after `step` is kept."""
        return self.path / "resume" / f"step-{step:08d}"

    def unfinished(self, step: int) -> Path:
        """The temporary name of that."""
        return self.resume_folder(step).with_name(f"step-{step:08d}.tmp")

    def begin_resume(self, step: int) -> Path:
        """An empty folder for the tensors of the state after `step`, under a temporary name until `finish_resume`."""
        temporary = self.unfinished(step)
        temporary.mkdir(parents=True, exist_ok=True)
        for file in temporary.iterdir():  # the folder stays: a start knows by it that what lies here is its own
            file.unlink()
        return temporary

    def finish_resume(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the values, give the folder its name, and delete older states."""
        temporary, target = self.unfinished(step), self.resume_folder(step)
        write_text(temporary / "state.json", json.dumps({"format_version": FORMAT_VERSION, "step": step, **values}))
        _reach_disk(temporary)
        temporary.rename(target)
        _reach_disk(target.parent)
        self._delete_states(but=target)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training into this folder meanwhile; a process that dies lets go of it.

        Raises:
            ConfigError: another one is at it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock", timeout=0, fallback_to_soft=False)  # a soft one would outlive a kill
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{self.path}: another process is training into it; let it end first") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        try:
            yield
        finally:
            lock.release()

    def check_vacant(self) -> None:
        """Whether a run may be started here: what a start that was cut short has left behind may be overwritten.

        Raises:
            ConfigError: weights of something else, or states of a run that has lost its config.
        """
        if steps := [state.name for state in self._whole_states() if state != self.resume_folder(0)]:
            raise ConfigError(
                f"{self.path}: has no config.json, but the state {steps[-1]} in resume/; put the file back, or name "
                "another folder"
            )
        if self.model_file.exists() and not self._states():
            raise ConfigError(f"{self.path}: holds a model.safetensors of something else; name another folder")

    def begin(self) -> None:
        """Delete the states that a start that was cut short has left behind."""
        self._delete_states(but=self.begin_resume(0))

    def amend_resume(self, step: int, values: Mapping[str, Any]) -> None:
        """Change some values of the state after `step`."""
        file = self.resume_folder(step) / "state.json"
        write_text(file, json.dumps({**read_json(file), **values}))

    def _states(self) -> list[Path]:
        """Whole and unfinished ones, in order."""
        return sorted((self.path / "resume").glob("step-*"))

    def _whole_states(self) -> list[Path]:
        return [state for state in self._states() if not state.name.endswith(".tmp")]

    def _delete_states(self, but: Path) -> None:
        for other in self._states():
            if other != but:
                shutil.rmtree(other, ignore_errors=True)

    def read_resume(self) -> tuple[Path, dict[str, Any]]:
        """The newest whole state: the folder with its tensors, and its values (with `step`).

        Raises:
            ConfigError: there is none, or one of a newer format.
        """
        if not (states := self._whole_states()):
            raise ConfigError(f"{self.path}: has no saved state in resume/ to go on from; start a new run")
        file = states[-1] / "state.json"
        values = read_json(file)
        check_format(values, str(file))
        return states[-1], values


def shipped_runs(section: str) -> dict[str, Path]:
    """The runs that come with imtok whose config has a section, such as "generator": name and folder, sorted."""
    folders = sorted((Path(str(files("imtok"))) / "weights").glob("*/model.safetensors"))
    found = {file.parent.name: file.parent for file in folders}
    return {name: folder for name, folder in found.items() if section in RunFolder(folder).read_config()}


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, without running any code that the file may hold.

    Args:
        path: a .safetensors file, or a PyTorch checkpoint whose state dict lies at the top or under `ema`, `model` or
            `state_dict`: the first of them that holds tensors, so averaged weights go before raw ones, as in
            LlamaGen's own reconstructions. What trainers put beside them is left out: options (an
            `argparse.Namespace`), and Lightning's notes on its best checkpoint.

    Raises:
        ConfigError: no such file, broken, or a pickle with anything but tensors and options in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # A plain container is safe; and what torch warns of (old pickles) the error says.
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with path.open("rb") as file:
            if not file.read(2).startswith(_PICKLED):
                raise ConfigError(
                    f"{path}: not a readable checkpoint; is it a web page, or a pointer to a large file?"
                ) from None
        raise ConfigError(
            f"{path}: refused: holds more than tensors, and untrusted code is never run; if you trust it, "
            "load it with torch yourself and save its state dict alone"
        ) from None
    except Exception as error:  # torch's reader may stumble over a broken file in any way
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
    """Whether tensors have the names and shapes of others.

    Raises:
        ConfigError: they do not; one line that begins with `where` and says the first name or shape that is wrong.
    """
    misfits = [f"{name} is missing" for name in wanted if name not in tensors]
    misfits += [f"{name} is not part of it" for name in tensors if name not in wanted]
    misfits += [
        f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise ConfigError(f"{where}: {misfits[0]}{more}")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file under a temporary name and rename it.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, temporary, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({first_line(error)})") from None
    _reach_disk(temporary)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _reach_disk(temporary)
    temporary.replace(path)


def _reach_disk(path: Path) -> None:
    """Return when a file's content would outlast a power cut, or a folder's names where the system can tell of those.

    Raises:
        OSError: the disk is full, or fails.
    """
    folder = path.is_dir()
    with suppress(OSError) if folder else nullcontext():
        opened = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
