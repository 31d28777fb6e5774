"""Steps of the training loop on a problem computed by hand: loss weights, clipping, precision, seeds, stopping."""

import dataclasses
import io
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.layers.model import Model
from imtok.training import trainer
from imtok.training.run import Phase, WatchdogConfig
from imtok.training.tasks import Losses, Task
from imtok.training.trainer import Trainer, TrainingStopped


class Point(Model):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(4))


class LinearTask(Task):
    """Two losses with gradients of 1 and 2 everywhere, weighted by the phase; records seed and autocast of calls."""

    players = ("point",)

    def __init__(self) -> None:
        super().__init__()
        self.point = Point()
        self.seeds: list[int] = []
        self.autocast: list[bool] = []
        self.poison: Callable[[], float] = lambda: 1.0
        self.used: Callable[[], float] = lambda: 1.0

    @property
    def model(self) -> Model:
        return self.point

    def parameters_of(self, player: str) -> list[nn.Parameter]:
        return list(self.point.parameters())

    def prepare(self, phases: Sequence[Phase], device: torch.device) -> None:
        pass

    def start_phase(self, phase: Phase) -> None:
        self._weights = {"l1": 0.5, **phase.weights}

    def losses(self, batch: Any, player: str, step: int) -> Losses:
        self.seeds.append(torch.initial_seed())
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        total = self.point.place.sum()
        return {"l1": total * self.poison(), "text": 2 * total}

    def weight(self, term: str) -> float:
        return self._weights[term]

    def after_step(self) -> dict[str, float]:
        return {"codebook_used": self.used()}


class EmptyData:
    """Training data without content: every batch, and every part of one, is the object itself."""

    def __len__(self) -> int:
        return 4

    def loader(self, *_: Any) -> "EmptyData":
        return self

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, "EmptyData"]]:
        return ((step, self) for step in range(start, stop))

    def to(self, device: torch.device) -> "EmptyData":
        return self

    def part(self, start: int, stop: int) -> "EmptyData":
        return self


class FakeValidation:
    """A validation, with or without held-out pictures, whose evaluations take 100 seconds of `clock` each."""

    clock = 0.0

    def __init__(self, held_out: bool = False) -> None:
        self.held_out = held_out

    def evaluate(self, model: Any, /, device: torch.device) -> dict[str, float]:
        self.clock += 100
        return {"place": model.place.mean().item()}

    def preview(self, model: Any, /, folder: Path, step: int, device: torch.device) -> Path:
        return folder


NO_VALIDATION = FakeValidation()


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradients given to the optimizer, step by step."""
    recorded: list[Tensor] = []
    step = torch.optim.AdamW.step

    def keep_and_step(optimizer: torch.optim.AdamW) -> None:
        recorded.append(optimizer.param_groups[0]["params"][0].grad.clone())
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", keep_and_step)
    return recorded


def train(
    folder: Path,
    task: Task,
    *phases: Phase,
    resume: bool = False,
    validation: FakeValidation = NO_VALIDATION,
    **training: Any,
) -> None:
    base = presets.get("insighttok-debug")
    settings: dict[str, Any] = {"phases": phases, "global_batch_size": 4, "precision": "fp32", "ema_decay": None}
    settings = {**settings, "max_grad_norm": 1e9, **training}
    config = dataclasses.replace(base, training=dataclasses.replace(base.training, **settings))
    Trainer(config, task, EmptyData(), validation, RunFolder(folder), torch.device("cpu")).run(resume)


@pytest.mark.parametrize("passes", [1, 2])
def test_phase_weights_apply_whatever_the_number_of_micro_batches(
    tmp_path: Path, gradients: list[Tensor], passes: int
) -> None:
    phases = [Phase(name="a", steps=1, weights={"text": 3.0}), Phase(name="b", steps=1, weights={"text": 0.1})]
    train(tmp_path, LinearTask(), *phases, micro_batch_size=4 // passes)
    for found, expected in zip(gradients, (0.5 * 1 + 3 * 2, 0.5 * 1 + 0.1 * 2), strict=True):
        torch.testing.assert_close(found, torch.full((4,), expected))


def test_gradient_is_clipped_by_its_global_norm(tmp_path: Path, gradients: list[Tensor]) -> None:
    train(tmp_path, LinearTask(), Phase(name="a", steps=1, weights={"text": 3.0}), max_grad_norm=0.5)
    torch.testing.assert_close(gradients[0], torch.full((4,), 0.25), rtol=1e-5, atol=0)  # a norm of 13 before
    assert RunFolder(tmp_path).read_metrics()[0]["grad_norm_point"] == pytest.approx(13)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_losses_are_computed_in_the_run_s_precision(tmp_path: Path, precision: str) -> None:
    task = LinearTask()
    train(tmp_path, task, Phase(name="a", steps=1, weights={"text": 1.0}), precision=precision)
    assert task.autocast == [precision == "bf16"]


def test_every_step_of_every_rank_has_its_own_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    for rank in (0, 1):
        monkeypatch.setattr(trainer, "rank", lambda rank=rank: rank)
        task, folder = LinearTask(), tmp_path / str(rank)
        folder.mkdir()
        train(folder, task, Phase(name="a", steps=2, weights={"text": 1.0}))
        seeds += task.seeds
    assert len(set(seeds)) == 4


def test_training_stops_after_max_rollbacks(tmp_path: Path) -> None:
    task = LinearTask()
    task.poison = lambda: float("nan") if len(task.seeds) > 2 else 1.0
    watchdog = WatchdogConfig(action="rollback", max_rollbacks=2)
    phase = Phase(name="a", steps=6, weights={"text": 1.0})
    with pytest.raises(TrainingStopped, match=r"step 3: l1 is nan; the last saved state is kept"):
        train(tmp_path, task, phase, watchdog=watchdog, save_every=1)
    assert [line["step"] for line in RunFolder(tmp_path).read_metrics() if "rollback" in line] == [2, 2]


PATIENT = WatchdogConfig(patience=3)


def test_symptom_count_survives_stop_and_resume(tmp_path: Path) -> None:
    task = LinearTask()

    def use_and_request_stop() -> float:
        if len(task.seeds) == 2:
            signal.raise_signal(signal.SIGTERM)  # takes effect after the next step
        return 0.001

    task.used = use_and_request_stop
    phase = Phase(name="a", steps=9, weights={"text": 1.0})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, task, phase, watchdog=dataclasses.replace(PATIENT, patience=4))
    assert RunFolder(tmp_path).read_resume()[1]["symptoms"]["codebook"] == 3
    with pytest.raises(TrainingStopped, match="step 4: the codebook has collapsed"):
        train(tmp_path, task, phase, watchdog=dataclasses.replace(PATIENT, patience=4), resume=True)


def test_kept_state_is_the_last_one_without_symptoms(tmp_path: Path) -> None:
    task = LinearTask()
    task.used = lambda: 0.001 if len(task.seeds) > 2 else 1.0
    with pytest.raises(TrainingStopped, match="step 5: the codebook has collapsed"):
        train(tmp_path, task, Phase(name="a", steps=9, weights={"text": 1.0}), watchdog=PATIENT, save_every=1)
    assert RunFolder(tmp_path).read_resume()[1]["step"] == 2


def test_postponed_save_is_made_when_the_symptom_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, saved = LinearTask(), []
    task.used = lambda: 0.001 if len(task.seeds) == 3 else 1.0
    monkeypatch.setattr(RunFolder, "write_resume", lambda folder, step, *_: saved.append(step))
    train(tmp_path, task, Phase(name="a", steps=7, weights={"text": 1.0}), watchdog=PATIENT, save_every=3)
    assert saved == [0, 4, 6, 7]


def test_validation_lost_by_a_kill_is_repeated_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_killed(*_: Any) -> None:
        raise RuntimeError("killed")

    phases = [Phase(name="a", steps=2, weights={"text": 1.0}), Phase(name="b", steps=2, weights={"text": 1.0})]
    validation = FakeValidation(held_out=True)
    for steps in (2, 4):  # killed in the validation at the end of a phase, and of the run
        with monkeypatch.context() as patch:
            patch.setattr(FakeValidation, "evaluate", raise_killed)
            with pytest.raises(RuntimeError, match="killed"):
                train(tmp_path, LinearTask(), *phases, validation=validation, evaluate_every=9, resume=steps > 2)
        assert RunFolder(tmp_path).read_resume()[1]["step"] == steps
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_run_phase", raise_killed)
            with pytest.raises(RuntimeError, match="killed") if steps == 2 else nullcontext():
                train(tmp_path, LinearTask(), *phases, validation=validation, evaluate_every=9, resume=True)
    train(tmp_path, LinearTask(), *phases, validation=validation, evaluate_every=9, resume=True)  # no step is left
    scores = [
        (line["step"], line["validation/place"]) for line in RunFolder(tmp_path).read_metrics() if "phase" not in line
    ]
    assert [step for step, _ in scores] == [2, 4]
    assert scores[0][1] > scores[1][1]


def test_step_time_excludes_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation, task = FakeValidation(held_out=True), LinearTask()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: validation.clock + 2 * len(task.seeds)))
    train(
        tmp_path,
        task,
        Phase(name="a", steps=4, weights={"text": 1.0}),
        validation=validation,
        evaluate_every=1,
        log_every=2,
    )
    assert [line["seconds_per_step"] for line in RunFolder(tmp_path).read_metrics() if "phase" in line] == [2.0, 2.0]
    assert validation.clock == 400


def test_run_continues_when_stdout_and_stderr_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, failed_writes = LinearTask(), []

    class BrokenPipe(io.StringIO):
        def write(self, text: str) -> int:
            if len(task.seeds) > 1:
                failed_writes.append(text)
                raise BrokenPipeError
            return len(text)

    monkeypatch.setattr(sys, "stderr", BrokenPipe())
    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    task.used = lambda: signal.raise_signal(signal.SIGINT) or 1.0 if len(task.seeds) == 3 else 1.0
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, task, Phase(name="a", steps=9, weights={"text": 1.0}), log_every=1)
    assert RunFolder(tmp_path).read_resume()[1]["step"] == 4
    assert [line["step"] for line in RunFolder(tmp_path).read_metrics()] == [1, 2, 3, 4]
    assert failed_writes


def test_second_interrupt_raises_at_once() -> None:
    loop, before = SimpleNamespace(_asked_to_stop=False), signal.getsignal(signal.SIGINT)
    with Trainer._stoppable(loop):
        signal.raise_signal(signal.SIGINT)
        assert loop._asked_to_stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
