"""One step of the loop, on a problem that is computed by hand: weights, clipping, precision, noise, stopping."""

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


class Falling(Task):
    """Two losses whose gradients are 1 and 2 everywhere, is_weighted as the phase says; tells what it saw."""

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


class Nothing:
    """What is trained on: nothing, in batches."""

    def __len__(self) -> int:
        return 4

    def loader(self, *_: Any) -> "Nothing":
        return self

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, "Nothing"]]:
        return ((step, self) for step in range(start, stop))

    def to(self, device: torch.device) -> "Nothing":
        return self

    def part(self, start: int, stop: int) -> "Nothing":
        return self


class Eye:
    """Looks, at held-out pictures if it has any, for 100 seconds of the clock's."""

    clock = 0.0

    def __init__(self, held_out: bool = False) -> None:
        self.held_out = held_out

    def evaluate(self, model: Any, /, device: torch.device) -> dict[str, float]:
        self.clock += 100
        return {"place": model.place.mean().item()}

    def preview(self, model: Any, /, folder: Path, step: int, device: torch.device) -> Path:
        return folder


BLIND = Eye()


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the optimizer is given, step by step."""
    seen: list[Tensor] = []
    step = torch.optim.AdamW.step

    def keep_and_step(optimizer: torch.optim.AdamW) -> None:
        seen.append(optimizer.param_groups[0]["params"][0].grad.clone())
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", keep_and_step)
    return seen


def fall(folder: Path, task: Task, *phases: Phase, resume: bool = False, eye: Eye = BLIND, **training: Any) -> None:
    base = presets.get("insighttok-debug")
    settings: dict[str, Any] = {"phases": phases, "global_batch_size": 4, "precision": "fp32", "ema_decay": None}
    settings = {**settings, "max_grad_norm": 1e9, **training}
    config = dataclasses.replace(base, training=dataclasses.replace(base.training, **settings))
    Trainer(config, task, Nothing(), eye, RunFolder(folder), torch.device("cpu")).run(resume)


@pytest.mark.parametrize("passes", [1, 2])
def test_terms_weigh_what_the_phase_says_however_many_passes_a_batch_takes(
    tmp_path: Path, gradients: list[Tensor], passes: int
) -> None:
    phases = [Phase(name="a", steps=1, weights={"text": 3.0}), Phase(name="b", steps=1, weights={"text": 0.1})]
    fall(tmp_path, Falling(), *phases, micro_batch_size=4 // passes)
    for found, expected in zip(gradients, (0.5 * 1 + 3 * 2, 0.5 * 1 + 0.1 * 2), strict=True):
        torch.testing.assert_close(found, torch.full((4,), expected))


def test_the_whole_gradient_is_clipped(tmp_path: Path, gradients: list[Tensor]) -> None:
    fall(tmp_path, Falling(), Phase(name="a", steps=1, weights={"text": 3.0}), max_grad_norm=0.5)
    torch.testing.assert_close(gradients[0], torch.full((4,), 0.25), rtol=1e-5, atol=0)  # a norm of 13 before
    assert RunFolder(tmp_path).read_metrics()[0]["grad_norm_point"] == pytest.approx(13)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_losses_are_computed_in_the_run_s_precision(tmp_path: Path, precision: str) -> None:
    task = Falling()
    fall(tmp_path, task, Phase(name="a", steps=1, weights={"text": 1.0}), precision=precision)
    assert task.autocast == [precision == "bf16"]


def test_every_step_of_every_rank_has_noise_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    for rank in (0, 1):
        monkeypatch.setattr(trainer, "rank", lambda rank=rank: rank)
        task, folder = Falling(), tmp_path / str(rank)
        folder.mkdir()
        fall(folder, task, Phase(name="a", steps=2, weights={"text": 1.0}))
        seeds += task.seeds
    assert len(set(seeds)) == 4


def test_rolling_back_ends_when_it_does_not_help(tmp_path: Path) -> None:
    task = Falling()
    task.poison = lambda: float("nan") if len(task.seeds) > 2 else 1.0
    watchdog = WatchdogConfig(action="rollback", max_rollbacks=2)
    phase = Phase(name="a", steps=6, weights={"text": 1.0})
    with pytest.raises(TrainingStopped, match=r"step 3: l1 is nan; the last saved state is kept"):
        fall(tmp_path, task, phase, watchdog=watchdog, save_every=1)
    assert [line["step"] for line in RunFolder(tmp_path).read_metrics() if "rollback" in line] == [2, 2]


PATIENT = WatchdogConfig(patience=3)


def test_a_symptom_s_patience_outlasts_a_stop(tmp_path: Path) -> None:
    task = Falling()

    def use_and_ask_to_stop() -> float:
        if len(task.seeds) == 2:
            signal.raise_signal(signal.SIGTERM)  # is heard after the step behind this one
        return 0.001

    task.used = use_and_ask_to_stop
    phase = Phase(name="a", steps=9, weights={"text": 1.0})
    with pytest.raises(KeyboardInterrupt):
        fall(tmp_path, task, phase, watchdog=dataclasses.replace(PATIENT, patience=4))
    assert RunFolder(tmp_path).read_resume()[1]["symptoms"]["codebook"] == 3
    with pytest.raises(TrainingStopped, match="step 4: the codebook has collapsed"):
        fall(tmp_path, task, phase, watchdog=dataclasses.replace(PATIENT, patience=4), resume=True)


def test_the_state_that_is_kept_is_the_last_sound_one(tmp_path: Path) -> None:
    task = Falling()
    task.used = lambda: 0.001 if len(task.seeds) > 2 else 1.0
    with pytest.raises(TrainingStopped, match="step 5: the codebook has collapsed"):
        fall(tmp_path, task, Phase(name="a", steps=9, weights={"text": 1.0}), watchdog=PATIENT, save_every=1)
    assert RunFolder(tmp_path).read_resume()[1]["step"] == 2


def test_a_state_that_waited_for_a_symptom_to_go_is_saved_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, saved = Falling(), []
    task.used = lambda: 0.001 if len(task.seeds) == 3 else 1.0
    monkeypatch.setattr(RunFolder, "write_resume", lambda folder, step, *_: saved.append(step))
    fall(tmp_path, task, Phase(name="a", steps=7, weights={"text": 1.0}), watchdog=PATIENT, save_every=3)
    assert saved == [0, 4, 6, 7]


def test_scores_that_a_kill_has_cost_are_taken_on_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise RuntimeError("killed")

    phases = [Phase(name="a", steps=2, weights={"text": 1.0}), Phase(name="b", steps=2, weights={"text": 1.0})]
    eye = Eye(held_out=True)
    for steps in (2, 4):  # looking at the end of a phase, and at that of the run
        with monkeypatch.context() as patch:
            patch.setattr(Eye, "evaluate", die)
            with pytest.raises(RuntimeError, match="killed"):
                fall(tmp_path, Falling(), *phases, eye=eye, evaluate_every=9, resume=steps > 2)
        assert RunFolder(tmp_path).read_resume()[1]["step"] == steps
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_run_phase", die)
            with pytest.raises(RuntimeError, match="killed") if steps == 2 else nullcontext():
                fall(tmp_path, Falling(), *phases, eye=eye, evaluate_every=9, resume=True)
    fall(tmp_path, Falling(), *phases, eye=eye, evaluate_every=9, resume=True)  # has nothing to do any more
    scores = [
        (line["step"], line["validation/place"]) for line in RunFolder(tmp_path).read_metrics() if "phase" not in line
    ]
    assert [step for step, _ in scores] == [2, 4]
    assert scores[0][1] > scores[1][1]


def test_looking_takes_no_step_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eye, task = Eye(held_out=True), Falling()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: eye.clock + 2 * len(task.seeds)))
    fall(tmp_path, task, Phase(name="a", steps=4, weights={"text": 1.0}), eye=eye, evaluate_every=1, log_every=2)
    assert [line["seconds_per_step"] for line in RunFolder(tmp_path).read_metrics() if "phase" in line] == [2.0, 2.0]
    assert eye.clock == 400


def test_a_run_goes_on_when_nobody_watches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = Falling(), []

    class Torn(io.StringIO):
        def write(self, text: str) -> int:
            if len(task.seeds) > 1:
                seen.append(text)
                raise BrokenPipeError
            return len(text)

    monkeypatch.setattr(sys, "stderr", Torn())
    monkeypatch.setattr(sys, "stdout", Torn())
    task.used = lambda: signal.raise_signal(signal.SIGINT) or 1.0 if len(task.seeds) == 3 else 1.0
    with pytest.raises(KeyboardInterrupt):
        fall(tmp_path, task, Phase(name="a", steps=9, weights={"text": 1.0}), log_every=1)
    assert RunFolder(tmp_path).read_resume()[1]["step"] == 4
    assert [line["step"] for line in RunFolder(tmp_path).read_metrics()] == [1, 2, 3, 4]
    assert seen


def test_a_second_interrupt_does_not_wait_for_the_step() -> None:
    loop, before = SimpleNamespace(_asked_to_stop=False), signal.getsignal(signal.SIGINT)
    with Trainer._stoppable(loop):
        signal.raise_signal(signal.SIGINT)
        assert loop._asked_to_stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
