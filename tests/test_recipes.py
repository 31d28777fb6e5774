"""The recipes: their split, what their runs differ in, and the nano recipe from pictures to scores in a few steps."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nano
import nano_ablations
import nano_data
import numpy as np
import pytest
from PIL import Image
from skimage import data

from imtok import presets
from imtok.config import to_dict
from imtok.data.readers import open_source
from imtok.training.run import RunConfig

RECIPES = Path(__file__).parents[1] / "recipes"


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, values


def differences(a: RunConfig, b: RunConfig) -> set[str]:
    """Names of the settings in which two runs differ; phases are compared by position."""
    values = []
    for config in (a, b):
        plain = to_dict(config)
        plain["training"]["phases"] = dict(enumerate(plain["training"]["phases"]))
        values.append(dict(leaves({k: v for k, v in plain.items() if k != "name"})))
    names = values[0].keys() | values[1].keys()
    return {name for name in names if values[0].get(name) != values[1].get(name)}


@pytest.mark.parametrize("suffix", ["", "-finetune"])
def test_the_twins_differ_in_the_two_losses_alone(suffix: str) -> None:
    a, b = (presets.get(f"{name}{suffix}") for name in nano.TWINS)
    names = {name.rpartition(".")[2] for name in differences(a, b)}
    assert names == {"text", "face", "name"}  # the name of the phase
    assert {p.steps for p in a.training.phases} == {p.steps for p in b.training.phases}


def test_the_shared_pretraining_is_how_both_twins_begin() -> None:
    shared = presets.get(nano.PRETRAINING).training.phases
    for name in nano.TWINS:
        assert presets.get(name).training.phases[: len(shared)] == shared
        assert presets.get(f"{name}-finetune").training.phases == presets.get(name).training.phases[len(shared) :]


def test_the_committed_test_list_is_the_rule_s() -> None:
    """Near-duplicates and other pictures of one person share a cluster, which goes one way as a whole."""
    clusters = (RECIPES / "nano_test_clusters.txt").read_text().split()
    assert len(clusters) == len(set(clusters)) > 300
    assert {nano_data.split_of_cluster(cluster) for cluster in clusters} == {"test"}
    shares = [nano_data.split_of_cluster(f"cluster {index}") for index in range(4000)]
    assert shares.count("test") / 4000 == pytest.approx(nano_data.TEST_SHARE, abs=0.02)
    assert shares.count("validation") / 4000 == pytest.approx(nano_data.VALIDATION_SHARE, abs=0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {"weights.text", "weights.face"}),
        ("no-area", {"losses.text.area_weighted", "losses.face.area_weighted"}),
        ("decoder-only", {"phases.0.trains"}),
        ("text-only", {"weights.face"}),
        ("face-only", {"weights.text"}),
        ("drop-50", {"data.drop_regions"}),
        ("ocr", {"weights.text", "weights.ocr"}),
        ("16k-both", {"tokenizer.quantizer.codebook_size"}),
    ],
)
def test_an_ablation_changes_what_its_name_says(name: str, expected: set[str]) -> None:
    configs = nano_ablations.configs()
    found = differences(configs[name], configs["both"])
    assert {min((n for n in expected if d.endswith(n)), default=d) for d in found} == expected


def test_every_row_of_a_table_is_a_run() -> None:
    runs = nano_ablations.configs()
    rows = [row for rows in nano_ablations.TABLES.values() for row in rows]
    assert {row.run for row in rows} == runs.keys()


def test_the_nano_recipe_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs) -> None:
    """From raw pictures to two evaluated tokenizers, with three steps where the recipe takes thousands."""
    for network in (
        *("text_detector/ppocrv6", "face_detector/mtcnn", "text_features/ppocrv6", "face_features/mobilefacenet"),
        *("text_judge/easyocr", "face_judge/dlib", "perceptual/vgg16", "vision/efficientnet_lite0"),
    ):
        needs(network)
    get = presets.get

    def few_steps(name: str) -> RunConfig:
        config = get(name)
        training = dataclasses.replace(
            config.training, steps=2 * len(config.training.phases), global_batch_size=2, evaluation_pictures=2
        )
        return dataclasses.replace(config, training=training)

    monkeypatch.setattr(presets, "get", few_steps)
    monkeypatch.setattr(nano_data, "SIGNS", 6)
    monkeypatch.setattr(nano_data, "TEST_SIGNS", 3)
    monkeypatch.setattr(nano_data, "split_of", lambda sample: ("train", "validation", "test")[len(sample.path) % 3])
    pictures = {"text": data.page()[:100, :200], "faces": data.astronaut()[:256, 100:356], "plain": data.coffee()}
    for kind, picture in pictures.items():
        (tmp_path / kind).mkdir()
        for name in ("a", "bb", "ccc"):
            Image.fromarray(picture).resize((288, 288)).save(tmp_path / kind / f"{name}.png")
    text, faces, plain = (str(tmp_path / kind) for kind in pictures)
    nano.main((text,), (faces,), (plain,), tmp_path / "out")
    twins = [tmp_path / "out" / "shipped" / name for name in nano.TWINS]
    assert all((twin / "model.safetensors").exists() for twin in twins)
    assert (tmp_path / "out/scores/report.html").exists()
    assert len(open_source(str(tmp_path / "out/shards/test/faces"))[0].faces or []) == 1
    codebooks = [np.asarray(nano.RunFolder(twin).read_model()["quantizer.codebook"]) for twin in twins]
    assert not np.array_equal(*codebooks)
