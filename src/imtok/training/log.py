"""Logging of a run: metrics.jsonl, a progress bar, and optionally TensorBoard or W&B."""

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
    """Interface of the external loggers."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers of a step."""
        ...


class TrainingLog:
    """Average numbers between two lines of metrics.jsonl, and show a progress bar with the remaining time.

    All ranks have a log, but only the first one writes.
    """

    def __init__(self, folder: RunFolder, start: int, steps: int, every: int, writer: Writer | None) -> None:
        self.folder, self.every, self.writer, self.speaks = folder, every, writer, rank() == 0
        self.bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05, disable=not self.speaks
        )
        self.forget()

    def forget(self) -> None:
        """Reset the averages, after a line was written or when the steps since the last one were undone."""
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._seconds, self._steps = 0.0, 0

    def add(self, step: int, phase: str, rate: float, seconds: float, numbers: Mapping[str, float]) -> None:
        """Add one step's numbers and its duration; `step` is the number of finished steps."""
        if not self.speaks:
            return
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        self._seconds += seconds
        with self._ignoring_output_errors():
            self.bar.update(step - self.bar.n)
        if step % self.every == 0 or step == self.bar.total:
            means = {name: total / self._counts[name] for name, total in self._sums.items()}
            each = round(self._seconds / self._steps, 4)
            self.record(step, phase=phase, learning_rate=rate, seconds_per_step=each, **means)
            shown = {k: f"{v:.3g}" for k, v in means.items() if not k.startswith("grad_norm")}
            with self._ignoring_output_errors():
                self.bar.set_postfix({"phase": phase, **shown})
            self.forget()

    def record(self, step: int, **values: Any) -> None:
        """Write one line of metrics.jsonl, and its numbers to the external logger."""
        if not self.speaks:
            return
        self.folder.append_metrics({"step": step, **values})
        if self.writer:
            self.writer.write(step, {name: value for name, value in values.items() if isinstance(value, float)})

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.speaks:
            with self._ignoring_output_errors():
                self.bar.write(message)

    def close(self) -> None:
        """Close the progress bar and leave it visible."""
        with self._ignoring_output_errors():
            self.bar.close()

    @contextmanager
    def _ignoring_output_errors(self) -> Iterator[None]:
        """Disable the progress bar if it cannot be written (`| tee` has ended, full disk); training continues."""
        try:
            yield
        except OSError:
            self.bar.disable = True


def create_writer(kind: str, folder: RunFolder, config: Mapping[str, Any], start: int) -> Writer | None:
    """Create the writer of an external logger.

    Args:
        kind: "tensorboard", "wandb", or "none".
        folder: folder of the run.
        config: settings of the run.
        start: number of finished steps; TensorBoard discards entries of later steps.

    Raises:
        ConfigError: the logger is not installed.
    """
    if kind == "none":
        return None
    try:
        return TensorBoardWriter(folder, start) if kind == "tensorboard" else WandbWriter(folder, config)
    except ImportError:
        raise ConfigError(f"training.logger: {kind} is not installed; pip install {kind}, or use none") from None


class TensorBoardWriter:
    """Event files in RUN/tensorboard; a new file begins when a run resumes from an earlier step."""

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
    """A W&B run named after the run folder; RUN/wandb_id holds its id, so that a resumed run continues it.

    Not covered by the tests, as wandb is not installed with imtok.
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
        self._run.define_metric("*", step_metric="step")  # W&B's own step cannot decrease on resume

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})
