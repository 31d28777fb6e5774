import json
import sys
from pathlib import Path

import pytest

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError
from imtok.training.log import TrainingLog, create_writer


def test_lines_hold_means_since_the_previous_line(tmp_path: Path) -> None:
    log = TrainingLog(RunFolder(tmp_path), start=0, steps=5, every=2, writer=None)
    for step in range(1, 6):
        log.add(step, "all", 0.1, float(step), {"l1": float(step)} | ({"text": 1.0} if step == 4 else {}))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["l1"]) for line in lines] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert [line.get("text") for line in lines] == [None, 1.0, None]
    assert [line["seconds_per_step"] for line in lines] == [1.5, 3.5, 5.0]


def test_tensorboard_replaces_values_undone_by_resume_and_rollback(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def written() -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("l1")]

    def write(start: int, *numbers: tuple[int, dict[str, float]]) -> None:
        writer = create_writer("tensorboard", RunFolder(tmp_path), {}, start)
        assert writer is not None
        for step, values in numbers:
            writer.write(step, values)

    write(0, (3, {"l1": 0.25}), (5, {"l1": 0.5}))
    assert written() == [(3, 0.25), (5, 0.5)]
    write(4, (5, {"l1": 0.75}), (6, {"l1": 1.0}), (8, {"l1": 9.0}), (6, {}), (8, {"l1": 2.0}))  # resumed, rolled back
    assert written() == [(3, 0.25), (5, 0.75), (6, 1.0), (8, 2.0)]


def test_error_names_the_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install wandb, or use none"):
        create_writer("wandb", RunFolder(tmp_path), {}, 0)
