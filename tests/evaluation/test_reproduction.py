"""What an evaluation records for its reproduction: command, versions and hashes."""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imtok.data.pictures import encode
from imtok.data.sample import Face, InMemoryDataset, Sample, TextRegion
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.reproduction import command_line
from imtok.evaluation.sets import DatasetSummary


def test_command_line_is_quoted_for_the_shell_and_omits_defaults() -> None:
    options = {"size": 64, "metrics": ["psnr", "ssim"], "checks": False, "fit": "pad", "count": None}  # two defaults
    line = command_line(evaluate, ["evaluate", "a", "b c", "--data", "d"], options)
    assert shlex.split(line) == [
        *("imtok", "evaluate", "a", "b c", "--data", "d", "--out", "OUT"),
        *("--size", "64", "--metrics", "psnr", "ssim", "--no-checks"),
    ]


def test_output_files_contain_command_versions_and_hashes(tmp_path: Path) -> None:
    for folder, brightness in (("photos", 10), ("drawn", 20)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            picture = np.full((20, 30, 3), brightness, dtype=np.uint8)
            (tmp_path / folder / f"{name}.png").write_bytes(encode(picture))
    paths = [str(tmp_path / "drawn"), str(tmp_path / "photos")]
    evaluate(paths[0], paths[1], tmp_path / "out", metrics=["psnr"], count=2, checks=False)
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    expected = f"imtok evaluate {paths[0]} --data {paths[1]} --out OUT --metrics psnr --count 2 --no-checks"
    assert written["command"] == expected
    assert written["versions"]["torch"] == torch.__version__
    files = [(tmp_path / "drawn" / name).read_bytes() for name in ("a.png", "b.png")]
    sums = b"".join(hashlib.sha256(file).digest() for file in files)
    assert written["tokenizers"][paths[0]]["sha256"] == hashlib.sha256(sums).hexdigest()
    (about,) = written["data"]
    assert about["paths_sha256"] == hashlib.sha256(b"a.png\nb.png\n").hexdigest()
    page = (tmp_path / "out/report.html").read_text()
    for text in (
        expected,
        about["paths_sha256"],
        about["sha256"],
        about["annotations_sha256"],
        written["versions"]["numpy"],
        "seed 0",
    ):
        assert text in page


def test_annotations_have_a_hash_of_their_own() -> None:
    picture = encode(np.zeros((20, 30, 3), dtype=np.uint8))

    def summary(options: dict[str, Any], **annotations: Any) -> DatasetSummary:
        sample = Sample(image=picture, path="a.png", width=30, height=20, **annotations)
        found = evaluate("jpeg:30", {"signs": InMemoryDataset([sample])}, metrics=["psnr"], checks=False, **options)
        return found.sets[0]

    word, face = TextRegion(box=(1.0, 2.0, 9.0, 8.0), text="OPEN"), Face(box=(0.0, 0.0, 8.0, 9.5))
    for annotations, line in (
        ({}, "[null, null, [], null, null]"),
        ({"captions": ["a sign"], "label": "shop", "cluster": "1"}, '[null, null, ["a sign"], "shop", "1"]'),
        (
            {"words": [word], "faces": [face]},
            '[[{"box": [1.0, 2.0, 9.0, 8.0], "text": "OPEN", "quad": null, "score": 1.0, "ratio": null}], '
            '[{"box": [0.0, 0.0, 8.0, 9.5], "landmarks": null, "score": 1.0, "ratio": null}], [], null, null]',
        ),
    ):
        for options in ({}, {"size": 16, "fit": "crop"}):  # the crop moves the boxes
            found = summary(options, **annotations)
            assert found.annotations_sha256 == hashlib.sha256(f"{line}\n".encode()).hexdigest()
            assert found.sha256 == hashlib.sha256(hashlib.sha256(picture).digest()).hexdigest()


def test_no_command_is_recorded_for_sets_in_memory(tmp_path: Path) -> None:
    picture = encode(np.zeros((20, 30, 3), dtype=np.uint8))
    signs = InMemoryDataset([Sample(image=picture, path="a.png", width=30, height=20)])
    evaluate("jpeg:30", {"some signs": signs}, tmp_path, metrics=["psnr"], checks=False)
    assert "command" not in json.loads((tmp_path / "metrics.json").read_text())
    assert "--data" not in (tmp_path / "report.html").read_text()


def test_a_tokenizer_s_hash_is_that_of_its_weights_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(encode(np.zeros((32, 32, 3), dtype=np.uint8)))
    file = Path(__file__).parents[1] / "tokenizers/reference/insighttok_tiny.pt"
    found = evaluate(file, tmp_path / "photos", metrics=["psnr"], checks=False)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.tokenizers[file.name]["sha256"] == digest
