"""Numbers of a run: metrics.jsonl, a progress line, and TensorBoard or W&B by choice."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError
from imtok.layers.collective import rank


@runtime_checkable
class Writer(Protocol):
    """Somebody else's logger."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers of a step."""
        ...


class TrainingLog:
    """Averages numbers between two lines of metrics.jsonl and keeps a progress line with the time left.

    All ranks have one, and all but the first are silent.
    """

    def __init__(self, folder: RunFolder, start: int, steps: int, every: int, writer: Writer | None) -> None:
        self.folder, self.every, self.writer, self.speaks = folder, every, writer, rank() == 0
        self.bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05, disable=not self.speaks
        )
        self.forget()

    def forget(self) -> None:
        """Begin the averages anew: a line has been written, or the steps since the last one have been undone."""
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._seconds, self._steps = 0.0, 0

    def add(self, step: int, phase: str, rate: float, seconds: float, numbers: Mapping[str, float]) -> None:
        """Take one step's numbers, and how long it took; `step` counts finished steps."""
        if not self.speaks:
            return
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        self._seconds += seconds
        with self._watched():
            self.bar.update(step - self.bar.n)
        if step % self.every == 0 or step == self.bar.total:
            means = {name: total / self._counts[name] for name, total in self._sums.items()}
            each = round(self._seconds / self._steps, 4)
            self.record(step, phase=phase, learning_rate=rate, seconds_per_step=each, **means)
            shown = {k: f"{v:.3g}" for k, v in means.items() if not k.startswith("grad_norm")}
            with self._watched():
                self.bar.set_postfix({"phase": phase, **shown})
            self.forget()

    def record(self, step: int, **values: Any) -> None:
        """Write one line."""
        if not self.speaks:
            return
        self.folder.append_metrics({"step": step, **values})
        if self.writer:
            self.writer.write(step, {name: value for name, value in values.items() if isinstance(value, float)})

    def say(self, message: str) -> None:
        """A line above the progress line."""
        if self.speaks:
            with self._watched():
                self.bar.write(message)

    def close(self) -> None:
        """Leave the progress line standing."""
        with self._watched():
            self.bar.close()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Where nobody takes the progress line any more (`| tee` that has ended, a full disk), training goes on."""
        try:
            yield
        except OSError:
            self.bar.disable = True


def create_writer(kind: str, folder: RunFolder, config: Mapping[str, Any], start: int) -> Writer | None:
    """TensorBoard or W&B, as chosen.

    Args:
        kind: which.
        folder: of the run.
        config: its settings.
        start: finished steps; what has been written of later ones is void.

    Raises:
        ConfigError: it is not installed.
    """
    if kind == "none":
        return None
    try:
        return TensorBoardWriter(folder, start) if kind == "tensorboard" else WandbWriter(folder, config)
    except ImportError:
        raise ConfigError(f"training.logger: {kind} is not installed; pip install {kind}, or use none") from None


class TensorBoardWriter:
    """Event files in RUN/tensorboard; a new one begins where a run goes on from an earlier step."""

    def __init__(self, folder: RunFolder, start: int) -> None:
        self._folder = str(folder.path / "tensorboard")
        self._begin(start)

    def _begin(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._step, self._writer = step, SummaryWriter(self._folder, purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if step < self._step:  # rolled back
            self._writer.close()
            self._begin(step)
        self._step = step
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class WandbWriter:
    """A W&B run named after the run folder; RUN/wandb_id says which one a resumed run goes on with.

    Not exercised by our tests: it is not installed with imtok.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        file = folder.path / "wandb_id"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(secrets.token_hex(8))
        self._run = wandb.init(
            project="imtok", name=folder.path.name, id=file.read_text(), config=dict(config), resume="allow"
        )
        self._run.define_metric("*", step_metric="step")  # W&B's own step cannot go back as a resumed run's does

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})
