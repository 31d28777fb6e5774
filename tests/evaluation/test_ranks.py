"""Two processes must find what one finds, and fail as one does."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.config import to_dict
from imtok.data.pictures import encode
from imtok.data.synthetic import synthesize
from imtok.data.vocabulary import LABELS
from imtok.evaluation.evaluate import evaluate
from imtok.tokenizers.catalog import build
from imtok.tokenizers.text import LABELS as BY_CLASS
from imtok.tokenizers.text import TextConfig


def hearing(folder: Path) -> str:
    """An untrained tokenizer that hears of classes, in a run folder."""
    torch.manual_seed(0)
    config = presets.get("textok-debug")
    text = TextConfig(encoder=BY_CLASS, dim=len(LABELS), classes=LABELS)
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, text=text))
    run = RunFolder(folder / "hearing")
    run.write_config(to_dict(config))
    run.write_model(build(config.tokenizer).weights())
    return str(run.path)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, list[str]]:
    """Contestants of every kind, and two sets: signs, and pictures of two sizes with a broken one among them."""
    synthesize(str(tmp_path / "signs"), count=22, seed=5, size=64, word_height=(12.0, 24.0))
    photos, drawn = tmp_path / "photos", tmp_path / "drawn"
    rng = np.random.default_rng(0)
    for index in range(20):
        height = 48 if index % 5 else 32
        picture = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((64, height)))
        for folder, shown in ((photos, picture), (drawn, 255 - picture)):
            folder.mkdir(exist_ok=True)
            (folder / f"{index:02}.png").write_bytes(encode(np.ascontiguousarray(shown)))
    (photos / "07.png").write_bytes(b"not a picture")
    return {"tokenizers": [hearing(tmp_path), "jpeg@1.5"], "data": [str(tmp_path / "signs"), str(photos)]}


def on_two_ranks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "imtok", *arguments]
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_find_what_one_finds(tmp_path: Path, places: dict[str, list[str]], needs) -> None:
    needs("text_judge/easyocr"), needs("vision/efficientnet_lite0")
    metrics = ["psnr", "fd_efficientnet_lite0", "bits_per_pixel", "text_ned"]
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(places["tokenizers"], places["data"], one, metrics=metrics, wrong_captions=True, cache=False)
    done = on_two_ranks(
        *("evaluate", *places["tokenizers"], "--data", *places["data"], "--out", str(two)),
        *("--metrics", *metrics, "--wrong-captions", "--no-cache"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report:") == 1
    assert (done.stdout + done.stderr).count("07.png") == 1  # left out, said once
    assert (two / "items.jsonl").read_text() == (one / "items.jsonl").read_text()
    alone, together = (json.loads((out / "metrics.json").read_text()) for out in (one, two))
    assert together == alone
    pages = [(out / "report.html").read_text() for out in (one, two)]
    assert pages[0] == pages[1]


def test_an_error_of_one_process_ends_all(tmp_path: Path, places: dict[str, list[str]]) -> None:
    (tmp_path / "drawn/17.png").unlink()  # in the second portion, which is the second process's
    done = on_two_ranks(
        "evaluate", str(tmp_path / "drawn"), "--data", places["data"][1], "--out", str(tmp_path / "out")
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "holds no reconstruction of 17.png" in line]
    assert len(said) == 2  # by each process
    assert "imtok/evaluation" not in done.stderr  # no traceback but torchrun's own
    assert not (tmp_path / "out/metrics.json").exists()
