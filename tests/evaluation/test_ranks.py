"""An evaluation on two processes gives the results of a single process, and fails in the same way."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from imtok.data.pictures import decode, encode
from imtok.data.readers import open_dataset
from imtok.data.synthetic import synthesize
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.generated import evaluate_generated


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, as the launched processes do: the rounding of networks depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def inputs(tmp_path: Path, hearing: str) -> dict[str, list[str]]:
    """Reconstructors of every kind, and two sets: signs, and pictures of two sizes with a broken one among them."""
    signs, photos, reconstructions = tmp_path / "signs", tmp_path / "photos", tmp_path / "drawn"
    photos.mkdir()
    reconstructions.mkdir()
    synthesize(str(signs), count=22, seed=5, size=64, word_height=(12.0, 24.0))
    pictures = {PurePosixPath(one.path).stem: decode(one.image, one.path) for one in open_dataset(str(signs))}
    rng = np.random.default_rng(0)
    for index in range(20):
        picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((64, 48 if index % 5 else 32))
        pictures[f"{index:02}"] = np.asarray(picture)
        (photos / f"{index:02}.png").write_bytes(encode(pictures[f"{index:02}"]))
    for name, picture in pictures.items():
        (reconstructions / f"{name}.png").write_bytes(encode(picture, "JPEG", quality=20))
    (photos / "07.png").write_bytes(b"not a picture")
    return {"tokenizers": [hearing, "jpeg@1.5", str(reconstructions)], "data": [str(signs), str(photos)]}


def on_two_ranks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_write_the_same_files_as_one(tmp_path: Path, inputs: dict[str, list[str]], needs) -> None:
    needs("text_judge/easyocr")
    needs("vision/efficientnet_lite0")
    (tmp_path / "drawn/17.png").unlink()  # the remaining results must be equal too
    metrics = ["psnr", "fd_efficientnet_lite0", "class_score_efficientnet_lite0", "bits_per_pixel", "text_ned"]
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"wrong_captions": True, "checks": False, "cache": False}
    evaluate(inputs["tokenizers"], inputs["data"], one, metrics=metrics, **options)
    launched = on_two_ranks(
        *("-m", "imtok", "evaluate", *inputs["tokenizers"], "--data", *inputs["data"], "--out", str(two)),
        *("--metrics", *metrics, "--wrong-captions", "--no-checks", "--no-cache"),
    )
    assert launched.stdout.count("Report:") == 1, launched.stderr
    assert launched.stdout.count("drawn on photos: ") == launched.stdout.count("without ") == 1
    assert (launched.stdout + launched.stderr).count("07.png") == 1  # left out, reported once
    assert same_files(one, two) == ["items.jsonl", "metrics.json", "report.html"]


@pytest.mark.slow
def test_an_error_on_one_process_ends_all_and_is_shown_once(
    tmp_path: Path, inputs: dict[str, list[str]], needs
) -> None:
    """On any rank and at any stage; and after six errors the processes still communicate."""
    for network in ("vision/efficientnet_lite0", "text_detector/ppocrv6", "text_judge/easyocr"):
        needs(network)
    signs, photos = inputs["data"]
    (tmp_path / "drawn/17.png").unlink()  # in the second portion, which the second process evaluates
    (tmp_path / "taken/metrics.json/by").mkdir(parents=True)
    options = ["--metrics", "psnr", "--no-checks"]
    metrics = ["fd_efficientnet_lite0", "class_score_efficientnet_lite0", "recall_efficientnet_lite0"]
    metrics.append("rendered_text_ned")
    evaluate_generated(signs, tmp_path / "one", reference=photos, size=64, metrics=metrics)
    generated = ["evaluate-generated", signs, "--metrics", *metrics, "--reference", photos]
    commands = [  # the rank that lacks all networks, the command, the expected message
        (None, ["evaluate", "jpeg:30", "--data", photos, "--metrics", "mse"], "no metric is called 'mse'"),
        (None, ["evaluate", str(tmp_path / "drawn"), "--data", photos, *options], "no reconstruction of 17.png"),
        (
            1,
            ["evaluate", "jpeg:30", "--data", photos, "--metrics", "psnr", "vgg16_distance"],
            "perceptual/vgg16 is away",
        ),
        (None, ["evaluate", "jpeg:30", "--data", photos, "--out", str(tmp_path / "taken"), *options], "metrics.json"),
        (1, [*generated, "--size", "8"], "size must be 16 or more"),
        (
            1,
            ["evaluate-generated", signs, "--metrics", *metrics[:3], "--reference", photos, "--size", "64"],
            "vision/efficientnet_lite0 is away",
        ),
        (None, [*generated, "--size", "64"], None),
    ]
    for number, (_, command, _) in enumerate(commands):
        if "--out" not in command:
            command += ["--out", str(tmp_path / f"two-{number}")]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    launched = on_two_ranks(str(Path(__file__).parent / "two_ranks.py"), str(tmp_path))
    assert launched.returncode == 0, launched.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    for (_, command, message), (code, output), (other_code, other_output) in zip(commands, first, second, strict=True):
        assert other_output == "", command
        if message is None:
            assert (code, other_code) == (0, 0), output
        else:
            assert (code, other_code) == (2, 2), output
            (line,) = [line for line in output.splitlines() if line.startswith(("imtok ", "without "))]
            assert message in line
            assert "Traceback" not in output
    assert [folder.name for folder in sorted(tmp_path.glob("two-*")) if any(folder.iterdir())] == [
        "two-2",
        "two-5",
        "two-6",
    ]
    assert same_files(tmp_path / "one", tmp_path / "two-6") == ["items.jsonl", "metrics.json"]


def same_files(one: Path, two: Path) -> list[str]:
    """Check that two folders hold the same files, and return the names of the files."""
    assert [file.name for file in sorted(one.iterdir())] == [file.name for file in sorted(two.iterdir())]
    assert [file.name for file in one.iterdir() if file.read_bytes() != (two / file.name).read_bytes()] == []
    return [file.name for file in sorted(one.iterdir())]
