import argparse
import errno
import json
import os
import pickle
import resource
import warnings
from pathlib import Path

import pytest
import torch

from imtok.checkpoints import RunFolder, load_tensors
from imtok.config import ConfigError


def test_resume_state_round_trips_and_older_states_are_deleted(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (5, 12):
        run.write_resume(step, {"a": torch.arange(step), "scalar": torch.tensor(1.5)}, {"symptoms": {}})
    assert [p.name for p in (tmp_path / "resume").iterdir()] == ["step-00000012"]
    folder, values = run.read_resume()
    tensors = load_tensors(folder / "state.safetensors")
    assert torch.equal(tensors["a"], torch.arange(12))
    assert tensors["scalar"].shape == ()
    assert values["step"] == 12


def test_unfinished_resume_state_is_ignored(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_resume(5, {"a": torch.zeros(1)}, {})
    unfinished = tmp_path / "resume" / "step-00000009.tmp"
    unfinished.mkdir()
    (unfinished / "state.safetensors").write_bytes(b"half")
    assert run.read_resume()[1]["step"] == 5
    run.write_resume(9, {"a": torch.ones(1)}, {})
    assert [p.name for p in (tmp_path / "resume").iterdir()] == ["step-00000009"]


def test_user_files_are_kept_and_check_vacant_rejects_other_content(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.check_vacant()
    (tmp_path / "run/resume").mkdir(parents=True)
    (tmp_path / "run/resume/cv.txt").write_text("mine")
    run.begin()
    run.write_resume(0, {"a": torch.zeros(1)}, {})
    run.begin()
    assert sorted(p.name for p in (tmp_path / "run/resume").iterdir()) == ["cv.txt", "step-00000000.tmp"]
    run.write_model({"a": torch.zeros(1)})
    run.check_vacant()  # an interrupted start may be repeated
    (tmp_path / "run/resume/step-00000000.tmp").rmdir()
    with pytest.raises(ConfigError, match=r"holds a model.safetensors of something else; name another folder"):
        run.check_vacant()
    run.write_resume(9, {"a": torch.zeros(1)}, {})
    with pytest.raises(ConfigError, match=r"has no config.json, but the state step-00000009 in resume/"):
        run.check_vacant()


def test_run_folder_lock_is_exclusive(tmp_path: Path) -> None:
    with RunFolder(tmp_path).held(), pytest.raises(ConfigError, match="another process"), RunFolder(tmp_path).held():
        pass
    with RunFolder(tmp_path).held():
        pass


def test_failed_write_raises_and_keeps_the_existing_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_model({"a": torch.ones(1)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors: cannot be written"):
            run.write_model({"a": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.read_model()["a"].tolist() == [1]


def test_truncate_metrics_drops_later_steps_and_malformed_lines(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('[1]\n{"l1": 2}\n"step"\n{"step": 4, "l')
    run.truncate_metrics(2)
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [1, 2]


def test_rejects_files_of_a_newer_format(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"tokenizer": {}})
    folder.write_resume(3, {"a": torch.zeros(1)}, {})
    for file, read in (
        (folder.config_file, folder.read_config),
        (tmp_path / "resume/step-00000003/state.json", folder.read_resume),
    ):
        read()
        file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
        with pytest.raises(ConfigError, match=f"{file.name}: format version 99, .* install a newer one"):
            read()


def test_folders_without_a_run_raise_config_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        run.read_config()
    run.write_config({"name": "x"})
    with pytest.raises(ConfigError, match=r"no model.safetensors yet"):
        run.read_model()
    with pytest.raises(ConfigError, match="no saved state"):
        run.read_resume()


def test_load_tensors_finds_nested_state_dicts_and_prefers_ema(tmp_path: Path) -> None:
    weights = {"w": torch.ones(2)}
    for index, content in enumerate([weights, {"model": weights}, {"state_dict": weights, "epoch": 3}]):
        torch.save(content, tmp_path / f"{index}.pt")
        assert list(load_tensors(tmp_path / f"{index}.pt")) == ["w"]
    raw, averaged = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    options = argparse.Namespace(lr=1e-4, betas=[0.9, 0.95])  # as LlamaGen's trainer saves them
    torch.save({"model": raw, "ema": averaged, "optimizer": {}, "args": options}, tmp_path / "both.pt")
    assert load_tensors(tmp_path / "both.pt")["w"].tolist() == [1, 1]
    torch.save({"ema": {"decay": 0.999}, "model": weights}, tmp_path / "settings.pt")  # an EMA without weights
    assert list(load_tensors(tmp_path / "settings.pt")) == ["w"]
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="holds a list"):
        load_tensors(tmp_path / "list.pt")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_load_tensors_does_not_execute_code(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"model": {}, "args": argparse.Namespace(path=Payload(marker))}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="refused: holds more than tensors"):
        load_tensors(tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Payload(marker)}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=r"evil\.pkl: [^\n]*$"):
            load_tensors(tmp_path / "evil.pkl")
    for content in ("<!DOCTYPE html><html>", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"):
        (tmp_path / "page.pt").write_text(content)  # failed downloads
        with pytest.raises(ConfigError, match="not a readable checkpoint; is it a web page, or a pointer"):
            load_tensors(tmp_path / "page.pt")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_without_tensors_raise_a_one_line_error(name: str, tmp_path: Path) -> None:
    for content in (b"not tensors", b""):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"^[^\n]*{name}: [^\n]*$"):
            load_tensors(tmp_path / name)


@pytest.mark.skipif(os.name == "nt", reason="Windows locks otherwise")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOSPC])
def test_file_systems_without_locks_do_not_prevent_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    if number == errno.ENOSPC:  # other failures are raised
        with pytest.raises(OSError, match="No space left"), RunFolder(tmp_path).held():
            pass
        return
    with RunFolder(tmp_path).held(), RunFolder(tmp_path).held():
        (tmp_path / "config.json").write_text("{}")
    # no marker file remains
    assert [file.name for file in tmp_path.iterdir() if file.name != "lock"] == ["config.json"]
