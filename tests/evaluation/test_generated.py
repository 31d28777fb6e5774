"""End to end from pictures to metrics.json, with small networks of random weights, compared with torch-fidelity."""

import hashlib
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from imtok import pretrained
from imtok.cli import main
from imtok.config import ConfigError
from imtok.data.pictures import Picture, decode, encode
from imtok.data.sample import DataError, Sample
from imtok.data.transforms import square
from imtok.evaluation.evaluate import METRICS as RECONSTRUCTION_METRICS
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.generated import evaluate_generated
from imtok.evaluation.generated_meters import ClipMeter, FaceNormMeter, Generated
from imtok.evaluation.generated_metrics import METRICS, SET_METRICS
from imtok.evaluation.generated_results import GeneratedEvaluation
from imtok.evaluation.metric_names import METRIC_INFO
from imtok.evaluation.prompt_info import PromptInfo, PromptLookup, quoted
from imtok.evaluation.protocols import PROTOCOLS, deviations
from imtok.evaluation.references import open_reference
from imtok.evaluation.rendered import RenderedTextMeter, found_words, plain, read_picture, reading_order
from imtok.evaluation.set_meters import SetMeter
from imtok.evaluation.sets import EvaluationSet
from imtok.evaluation.teachers import UNKNOWN, teachers_behind
from imtok.pretrained import (
    DetectedLine,
    DetectedWord,
    ExtractedFeatures,
    FeatureExtractor,
    FrozenNetwork,
    MissingWeights,
    Reading,
)
from imtok.pretrained.clip import CLIP

NETWORK = "vision/inception"
SETS = tuple(SET_METRICS[NETWORK])


class Tiny(FeatureExtractor):
    """Two convolutions with random weights in place of Inception."""

    name, sha256 = NETWORK, "0" * 64

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.classes = nn.Conv2d(3, 6, 5, 4), nn.Conv2d(6, 12, 3, 2), nn.Linear(12, 7)
        with torch.no_grad():
            self.classes.weight.mul_(30)

    def extract_features(self, images: torch.Tensor) -> ExtractedFeatures:
        middle = torch.relu(self.first(images))
        pooled = torch.relu(self.second(middle)).mean((2, 3))
        return ExtractedFeatures(pooled, middle[:, :1].flatten(1), self.classes(pooled))


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny().freeze()  # pyright: ignore[reportReturnType]


@pytest.fixture
def only_tiny(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry offers the tiny network and CLIP from folders, and nothing else."""
    original_load = pretrained.load

    def load(name: str, file: Any = None) -> Any:
        if name == NETWORK:
            return tiny
        if name == "clip/transformers" and file is not None:
            return original_load(name, file)
        raise MissingWeights(f"{name} is missing: get it")

    monkeypatch.setattr(pretrained, "load", load)


def save_noise(folder: Path, count: int, seed: int, size: int = 32) -> Path:
    """Write pictures of smooth noise, each of a few colours."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size)).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_noise(tmp_path_factory.mktemp("drawn") / "drawn", 60, seed=1)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_noise(tmp_path_factory.mktemp("real") / "real", 50, seed=2)


def values(found: GeneratedEvaluation) -> dict[str, float | None]:
    return {name: score.value for name, score in found.metrics.items()}


def test_set_metrics_agree_with_torch_fidelity(
    tiny: Tiny, only_tiny: None, generated: Path, real: Path, tmp_path: Path
) -> None:
    fidelity = pytest.importorskip("torch_fidelity")

    class TinyForFidelity(fidelity.FeatureExtractorBase):
        """The same network behind torch-fidelity's interface."""

        def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
            super().__init__(name, features_list)
            self.tiny = tiny

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "pooled", "spatial", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return {"isc": "logits"}.get(metric, "pooled")

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.tiny.extract_features(pixels / 127.5 - 1)
            return tuple(getattr(found, name) for name in self.features_list)

    fidelity.register_feature_extractor("imtok-tiny", TinyForFidelity)
    common = {
        "input1": str(generated),
        "input2": str(real),
        "feature_extractor": "imtok-tiny",
        "fid": True,
        "cuda": False,
        "cache": False,
        "verbose": False,
        "save_cpu_ram": True,
    }
    theirs = fidelity.calculate_metrics(**common, isc=True, prc=True)
    spatial = fidelity.calculate_metrics(**common, feature_layer_fid="spatial")
    ours = values(evaluate_generated(generated, tmp_path, reference=real, metrics=SETS))
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["sfid"] == pytest.approx(spatial["frechet_inception_distance"], rel=1e-3)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-3)
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-3)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert np.std(written["metrics"]["inception_score"]["parts"]) == pytest.approx(
        theirs["inception_score_std"], rel=1e-3
    )
    for metric in ("fid", "sfid", "precision", "recall"):
        assert len(written["metrics"][metric]["parts"]) == 4
        assert "low" not in written["metrics"][metric]  # no bootstrap
    assert np.mean(written["metrics"]["precision"]["parts"]) == pytest.approx(ours["precision"])


def test_scores_are_independent_of_file_format_batches_and_statistics(
    only_tiny: None, generated: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = values(evaluate_generated(generated, reference=real, metrics=SETS))
    assert main(["pack", str(generated), str(tmp_path / "drawn.npz")]) == 0
    assert main(["pack", str(real), str(tmp_path / "real.npz"), "--statistics"]) == 0
    monkeypatch.setattr("imtok.evaluation.sets._BATCH", 7)
    found = evaluate_generated(tmp_path / "drawn.npz", reference=tmp_path / "real.npz", metrics=SETS)
    assert values(found) == pytest.approx(expected, rel=1e-5)
    assert found.reference is not None
    assert found.reference.statistics == ["frechet", "spatial"]

    with np.load(tmp_path / "real.npz") as arrays:  # as ADM publishes for some sizes: statistics without pictures
        assert arrays["mu"].shape == (12,)
        np.savez(tmp_path / "alone.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    alone = evaluate_generated(generated, reference=tmp_path / "alone.npz", metrics=SETS)
    assert alone.metrics["fid"].value == pytest.approx(expected["fid"], rel=1e-5)
    assert alone.failed.keys() == {"sfid", "precision", "recall"}
    assert "needs the pictures of a reference" in alone.failed["recall"]
    assert alone.reference is not None
    assert (alone.reference.pictures, alone.reference.looked_at) == (0, None)
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    other = evaluate_generated(generated, reference=tmp_path / "other.npz", metrics=["fid"])
    assert other.failed == {"fid": "the given statistics are of 5 features, the pictures' of 12"}
    np.savez(tmp_path / "torn.npz", mu=np.zeros(5), sigma=np.eye(4))
    with pytest.raises(DataError, match=r"mu \(5,\) and sigma \(4, 4\) differ"):
        evaluate_generated(generated, reference=tmp_path / "torn.npz", metrics=["fid"])


@pytest.mark.parametrize(
    ("mean", "covariance"),
    [
        (np.full(5, np.nan), np.eye(5)),
        (np.zeros(5), np.full((5, 5), np.inf)),
        (np.array(["a"] * 5), np.eye(5)),
        (np.zeros(5), np.eye(5) * 1j),
    ],
)
def test_rejects_statistics_that_are_not_finite(mean: np.ndarray, covariance: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=mean, sigma=covariance)
    with pytest.raises(DataError, match="mu and sigma hold something else than finite numbers"):
        open_reference(str(tmp_path / "x.npz"))


def test_prompts_with_the_same_quoted_text_count_as_different(only_tiny: None, tmp_path: Path) -> None:
    for index, colour in enumerate(("red", "blue", "green")):
        write_generated(tmp_path, f"{index}.png", f'a {colour} sign that says "OPEN"')
    found = evaluate_generated(tmp_path, metrics=["inception_score"], protocol="dpg")
    assert any(line.startswith("3 different prompts") for line in found.deviations), found.deviations
    assert found.pictures.groups == 1  # the bootstrap resamples them as one group


def test_rejects_options_that_have_no_effect(only_tiny: None, generated: Path, real: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"detector": tmp_path}, "give its file too, --geneval"),
        ({"answerer": tmp_path}, "give its file too, --dpg"),
        ({"geneval": "x.jsonl", "metrics": ["fid"], "reference": real}, "--geneval: none of the metrics"),
        ({"size": 32}, "--size crops the reference; give one"),
        ({"clip": tmp_path, "metrics": ["inception_score"]}, "--clip: none of the metrics looks through CLIP"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_generated(generated, **options)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_fid_fails_with_statistics_of_another_picture_size(
    only_tiny: None, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["pack", str(save_noise(tmp_path / "large", 8, seed=3, size=48)), str(tmp_path / "large.npz"), "--statistics"])
    found = evaluate_generated(generated, reference=tmp_path / "large.npz", metrics=["fid", "inception_score"], size=32)
    assert found.failed["fid"].endswith("large.npz: its statistics are of 48 x 48 pixels, the pictures are not")
    assert found.metrics.keys() == {"inception_score"}
    monkeypatch.setattr(SetMeter, "add_reference", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate_generated(generated, tmp_path, reference=tmp_path / "large.npz", metrics=["fid", "recall"], size=32)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (written["metrics"], written["failed"].keys()) == ({}, {"fid"})


def test_metrics_file_describes_the_reference(only_tiny: None, generated: Path, real: Path, tmp_path: Path) -> None:
    """Given statistics are used for the comparison; the pictures in the same file are counted but not processed."""
    file, out = tmp_path / "a b.npz", tmp_path / "out"
    assert main(["pack", str(real), str(file), "--statistics"]) == 0
    arguments = [*("--reference", str(file)), *("--metrics", "fid"), *("--protocol", "imagenet-generation")]
    main(["evaluate-generated", str(generated), "--out", str(out), *arguments])
    written = json.loads((out / "metrics.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert written["reference"] == {
        "name": str(file),
        "sha256": digest,
        "pictures": 50,
        "statistics": ["frechet", "spatial"],
        "looked_at": None,
    }
    assert "50 pictures of the reference, 10000 are wanted" in written["deviations"]
    command = shlex.split(written["command"])
    assert command == ["imtok", "evaluate-generated", str(generated), "--out", "OUT", *arguments]
    assert written["versions"]["torch"] == torch.__version__
    assert {"torch-fidelity", "transformers"} <= written["versions"].keys()
    reference = evaluate_generated(generated, reference=real, metrics=["fid"]).reference
    assert reference is not None
    assert reference.looked_at is not None
    assert (reference.sha256, reference.pictures, reference.looked_at.pictures) == (None, 50, 50)
    digests = [hashlib.sha256(picture.read_bytes()).digest() for picture in sorted(real.iterdir())]
    assert reference.looked_at.sha256 == hashlib.sha256(b"".join(digests)).hexdigest()


def test_fid_is_zero_and_precision_recall_one_for_identical_sets(only_tiny: None, real: Path) -> None:
    found = values(evaluate_generated(real, reference=real, metrics=SETS))
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["precision"] == found["recall"] == 1


def test_evaluate_and_evaluate_generated_agree_on_reconstructions(
    only_tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """rFID and rIS as in papers, for pictures that are not square: cropped by `imtok evaluate`, or beforehand."""
    photos, restored = tmp_path / "photos", tmp_path / "drawn"
    photos.mkdir()
    restored.mkdir()
    rng = np.random.default_rng(3)
    for index in range(50):
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(colours).resize((56, 40) if index % 2 else (40, 64)))
        (photos / f"{index:02}.png").write_bytes(encode(picture))
        (restored / f"{index:02}.png").write_bytes(encode(decode(encode(square(picture, 32), "JPEG", quality=10))))
    common = ["--data", str(photos), "--size", "32", "--fit", "crop", "--protocol", "imagenet-val-reconstruction"]
    assert main(["evaluate", str(restored), *common, "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    sizes = "pictures of 32 x 32 pixels, 256 x 256 or 512 x 512 are wanted"
    assert f"on photos: 50 pictures, 50000 are wanted; {sizes}\n" in output
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["preprocessing"] == "ADM's centred square: halved (BOX), then resized (BICUBIC), 32 px"
    (protocol_note,) = written["notes"]
    assert "the reference is to be ImageNet-1K's validation pictures" in protocol_note
    assert protocol_note in output
    scores = {result["tokenizer"]: result["metrics"] for result in written["results"]}
    expected = evaluate_generated(restored, reference=photos, metrics=["fid", "inception_score"], size=32).to_json()
    assert scores[str(restored)]["fid"]["value"] == pytest.approx(expected["metrics"]["fid"]["value"], rel=1e-6)
    assert scores[str(restored)]["fid"]["count"] == expected["metrics"]["fid"]["count"] == 50
    assert scores[str(restored)]["inception_score"] == expected["metrics"]["inception_score"]
    assert scores["identity"]["fid"]["value"] == pytest.approx(0, abs=1e-6)

    padded = evaluate("jpeg:10", photos, size=32, metrics=["fid"], count=8, protocol="imagenet-val-reconstruction")
    assert "pictures were not cropped here (--size 256 --fit crop does that)" in str(padded)
    own_size = evaluate("jpeg:10", restored, tmp_path / "own", metrics=["fid"], count=8)
    assert own_size.notes == json.loads((tmp_path / "own/metrics.json").read_text())["notes"]
    assert padded.notes == [*own_size.notes, protocol_note]
    assert own_size.notes[0] in (tmp_path / "own/report.html").read_text()
    assert "are not cropped to centred squares" in str(padded)
    assert "inception_score was not measured; psnr was not measured; 8 pictures" in str(padded)


def test_failed_metrics_are_reported_and_the_others_are_kept(
    only_tiny: None, generated: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate-generated", str(generated), "--out", str(tmp_path)]
    wanted = ["--metrics", "inception_score", "fid", "magface", "rendered_text_ned", "clip_score"]
    assert_exit(lambda: main([*arguments, *wanted]), 2)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["metrics"].keys() == {"inception_score"}
    assert written["failed"]["fid"] == "needs a set to compare with, --reference REF"
    assert "is missing" in written["failed"]["magface"]
    assert written["failed"].keys() == {"fid", "magface", "rendered_text_ned", "clip_score"}
    assert all("\n" not in reason for reason in written["failed"].values())
    captured = capsys.readouterr()
    assert "inception score" in captured.out
    assert captured.err.count("without ") + captured.out.count("without ") == 4


def test_absent_table_fails_only_its_own_metrics(only_tiny: None, generated: Path) -> None:
    found = evaluate_generated(generated, metrics=["inception_score", "geneval"], geneval="absent.jsonl")
    assert found.metrics.keys() == {"inception_score"}
    assert found.failed.keys() == {"geneval"}
    assert found.to_json()["tables"] == {}


def assert_exit(act: Callable[[], Any], code: int) -> None:
    with pytest.raises(SystemExit) as exit_info:
        act()
    assert exit_info.value.code == code


def test_metrics_without_reference_are_written_before_it_is_processed(
    only_tiny: None, generated: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SetMeter, "add_reference", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate_generated(generated, tmp_path, reference=real, metrics=["fid", "inception_score"])
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["metrics"].keys() == {"inception_score"}
    assert written["failed"] == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("a.npz: a bad block")])
def test_results_before_an_interruption_or_read_error_are_written(
    only_tiny: None, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    read, rows = EvaluationSet._read, []

    def stop(self: EvaluationSet, row: int) -> Any:
        rows.append(row)
        if len(rows) == 40:
            raise error
        return read(self, row)

    monkeypatch.setattr(EvaluationSet, "_read", stop)
    with pytest.raises(type(error)):
        evaluate_generated(generated, tmp_path, metrics=["inception_score"])
    written = json.loads((tmp_path / "metrics.json").read_text())
    seen = written["pictures"]["pictures"]
    assert 16 <= seen < 40
    assert written["metrics"]["inception_score"]["count"] == seen
    assert written["ended"] == f"after {seen} of 60 pictures: {str(error) or 'stopped'}"


def test_error_names_the_feature_network_that_outputs_nan(
    tiny: Tiny, only_tiny: None, generated: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.classes, "forward", lambda pooled: torch.full((len(pooled), 7), math.nan))
    found = evaluate_generated(generated, tmp_path, reference=real, metrics=SETS)
    assert not found.metrics
    assert set(found.failed.values()) == {f"{NETWORK}: outputs NaN or infinity; its weights may be broken"}


def test_error_names_the_clip_that_outputs_nan() -> None:
    class Broken(CLIP):
        name = "clip/broken"

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def similarity(self, pictures: Sequence[Picture], texts: Sequence[str]) -> torch.Tensor:
            return torch.full((len(pictures),), math.nan)

    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    sample = Sample(image=b"", path="x", width=8, height=8)
    batch = [Generated(sample=sample, picture=picture, prompt_info=PromptInfo(prompt="a dog"))] * 2
    with pytest.raises(ConfigError, match="clip/broken: outputs NaN or infinity"):
        ClipMeter(Broken()).process(batch)


def test_ambiguous_table_is_rejected_before_pictures_are_processed(
    only_tiny: None, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.csv").write_text("file,text\na/039.png,OPEN\nb/039.png,SHUT\n")
    monkeypatch.setattr(SetMeter, "process", lambda self, batch: pytest.fail("looked at pictures"))
    with pytest.raises(DataError, match=r"039.png: is it the table's a/039.png or b/039.png\?"):
        evaluate_generated(generated, metrics=["inception_score"], words=str(tmp_path / "words.csv"))


def test_reference_metrics_need_pictures_of_one_size(
    only_tiny: None, generated: Path, real: Path, tmp_path: Path
) -> None:
    large = save_noise(tmp_path / "large", 8, seed=3, size=48)
    found = evaluate_generated(generated, reference=large, metrics=SETS)
    assert found.failed.keys() == set(SETS) - {"inception_score"}
    assert found.metrics.keys() == {"inception_score"}  # which needs no reference
    assert found.failed["fid"].startswith("000.png: has 48 x 48 pixels, the generated pictures 32 x 32; sets are")
    cropped = evaluate_generated(generated, reference=large, metrics=["fid"], size=32)
    assert cropped.metrics["fid"].value is not None
    assert cropped.preprocessing == "reference: ADM's centred square: halved (BOX), then resized (BICUBIC), 32 px"
    by_default = evaluate_generated(generated, reference=large)  # the reference alone determines the metrics
    default_metrics = SET_METRICS["vision/efficientnet_lite0"]
    assert by_default.failed.keys() == {name for name, kind in default_metrics.items() if kind != "classes"}
    mixed = tmp_path / "mixed"
    save_noise(mixed / "a", 3, seed=4)
    save_noise(mixed / "b", 3, seed=5, size=40)
    assert "has 40 x 40 pixels" in evaluate_generated(mixed, reference=real, metrics=["fid"]).failed["fid"]


def test_reports_too_few_pictures_empty_sets_and_unknown_names(
    only_tiny: None, generated: Path, real: Path, tmp_path: Path
) -> None:
    one, three = save_noise(tmp_path / "one", 1, seed=6), save_noise(tmp_path / "three", 3, seed=7)
    found = evaluate_generated(one, reference=real, metrics=["fid", "recall", "inception_score", "precision"])
    assert found.failed["fid"] == "needs two pictures or more, got 1"
    assert found.failed["recall"] == "recall needs 4 pictures or more in the set, got 1"
    assert found.metrics["inception_score"].value == pytest.approx(1)
    found = evaluate_generated(generated, reference=three, metrics=["precision", "fid"])
    assert found.failed == {"precision": "precision needs 4 pictures or more in the reference, got 3"}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"not a picture")
    found = evaluate_generated(generated, reference=broken, metrics=["inception_score", "fid"])
    assert found.failed["fid"].endswith("none of the pictures can be read")
    assert found.metrics.keys() == {"inception_score"}
    (tmp_path / "empty").mkdir()
    for act, message in (
        (lambda: evaluate_generated(tmp_path / "empty", reference=real), "empty: no pictures there"),
        (lambda: evaluate_generated(generated, reference=tmp_path / "empty"), "empty: no pictures there"),
        (lambda: evaluate_generated(generated, reference=tmp_path / "absent"), "absent: no such file or folder"),
        (lambda: evaluate_generated(generated, metrics=["FID"]), "no metric is called 'FID'; there are fid"),
        (lambda: evaluate_generated(generated, protocol="fid50k"), "no protocol is called 'fid50k'"),
        (lambda: evaluate_generated(generated, prompts=str(tmp_path / "absent.csv")), "absent.csv: No such file"),
    ):
        with pytest.raises((ConfigError, DataError), match=message) as raised:
            act()
        assert "\n" not in str(raised.value)


def test_metrics_of_efficientnet_have_their_own_names(generated: Path, real: Path, needs) -> None:
    needs("vision/efficientnet_lite0")
    wanted = list(SET_METRICS["vision/efficientnet_lite0"])
    assert not any(name in ("fid", "sfid", "inception_score", "precision", "recall") for name in wanted)
    found = evaluate_generated(generated, reference=real, metrics=wanted, count=12)
    assert found.metrics.keys() == set(wanted)
    assert {score.network for score in found.metrics.values()} == {"vision/efficientnet_lite0"}
    assert found.pictures.pictures == 12
    assert set(METRICS) <= METRIC_INFO.keys()


def write_generated(folder: Path, name: str, prompt: str, run: str = "runs/x") -> None:
    """Write a picture with its settings as `imtok generate` does."""
    metadata = PngInfo()
    metadata.add_text("imtok", json.dumps({"run": run, "sha256": "", "prompt": prompt, "seed": 0}))
    Image.new("RGB", (40, 40), (200, 20, 20)).save(folder / name, pnginfo=metadata)


def test_clip_score_uses_prompts_from_the_files_or_a_table(only_tiny: None, tiny_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    folder.mkdir()
    for index, prompt in enumerate(("a red sign", "the blue sea", "a dog")):
        write_generated(folder, f"{index}.png", prompt)
    (folder / "3.png").write_bytes(encode(np.full((40, 40, 3), 90, dtype=np.uint8)))
    found = evaluate_generated(folder, metrics=["clip_score"], clip=tiny_clip).metrics["clip_score"]
    network = pretrained.load("clip/transformers", tiny_clip)
    red = np.full((40, 40, 3), (200, 20, 20), dtype=np.uint8)
    with torch.no_grad():
        cosines = network.similarity([red] * 3, ["a red sign", "the blue sea", "a dog"]).tolist()
    assert min(cosines) > 0
    assert found.value == pytest.approx(100 * np.mean(cosines), rel=1e-4)
    assert found.note is not None
    assert found.note.endswith("1 pictures without a prompt, 0 prompts cut")

    table = tmp_path / "prompts.csv"
    table.write_text("file,prompt\n" + "".join(f"{index}.png,a red sign\n" for index in range(4)))
    found = evaluate_generated(folder, metrics=["clip_score"], clip=tiny_clip, prompts=str(table))
    assert found.metrics["clip_score"].count == 4
    assert found.metrics["clip_score"].groups == 1  # one prompt
    assert found.to_json()["tables"] == {str(table): hashlib.sha256(table.read_bytes()).hexdigest()}


def test_negative_cosines_count_as_zero() -> None:
    class Fixed(CLIP):
        size = "fixed"

        def __init__(self) -> None:
            FrozenNetwork.__init__(self)

        def is_cut(self, text: str) -> bool:
            return False

        def similarity(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> torch.Tensor:
            return torch.tensor([float(text) for text in texts])

    meter = ClipMeter(Fixed())
    infos = [PromptInfo(prompt=prompt) for prompt in ("0.3", "-0.2", "0.1")]
    meter.add(meter.process([replace(generated_with(None), prompt_info=info) for info in infos]), groups=[0, 1, 2])
    found = meter.measure("clip_score").items
    assert found is not None
    assert found.values.tolist() == pytest.approx([30, 0, 10])


class Reader:
    """Returns the given texts, one per crop."""

    name, sha256 = "text_judge/fake", "1"
    reads_lines = True

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
        return [Reading(self.texts.pop(0), 1.0) for _ in crops]


class Lines:
    """Detects the same lines in every picture."""

    name, sha256 = "text_detector/fake", "2"

    def __init__(self, *boxes: tuple[int, int, int, int], text: str = "") -> None:
        self.lines = [
            DetectedLine(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64), text, 1.0, [])
            for x0, y0, x1, y1 in boxes
        ]

    def detect(self, image: np.ndarray) -> list[DetectedLine]:
        return self.lines


def test_lines_are_read_in_order() -> None:
    detector = Lines((50, 11, 90, 21), (0, 30, 90, 40), (0, 10, 45, 20))  # the second half of line one comes first
    boxes = [line.quad[0].tolist() for line in reading_order(detector.detect(np.zeros((50, 100, 3), dtype=np.uint8)))]
    assert boxes == [[0, 10], [50, 11], [0, 30]]
    picture = np.zeros((50, 100, 3), dtype=np.uint8)
    reader = Reader("you have", "", "brains")
    assert read_picture(detector, reader, picture) == "you have brains"
    quad = np.array([(0, 0), (9, 0), (9, 9), (0, 9)], dtype=np.float64)
    detector.lines[0].words.extend(DetectedWord(quad + 9 * place, "", 1.0) for place in range(2))
    reader.reads_lines, reader.texts = False, ["two", "words"]
    assert read_picture(detector, reader, picture) == "two words"
    assert read_picture(Lines((0, 0, 9, 9), text="its own"), None, picture) == "its own"


def test_word_matching_text_normalization_and_quoted_text() -> None:
    assert found_words(["a", "b", "a", "a"], ["a", "c", "a", "b"]) == [True, True, True, False]
    assert plain(" You\u2019re\non\u2026 \u201cit\u201d ") == 'You\'re on... "it"'
    assert quoted('a sign that says "OPEN now" and “24 h”') == "OPEN now 24 h"
    assert quoted("a sign that says 'OPEN'") is None


def generated_with(text: str | None, row: int = 0) -> Generated:
    picture = np.zeros((40, 40, 3), dtype=np.uint8)
    sample = Sample(image=encode(picture), path=f"{row}.png", width=40, height=40)
    prompt_info = PromptInfo(prompt=None, text=text)
    return Generated(sample=sample, picture=picture, prompt_info=prompt_info)


def test_rendered_text_metrics_by_hand() -> None:
    meter = RenderedTextMeter(Lines((0, 0, 9, 9)), Reader("Stay humgry", "open! 24"))
    batch = [generated_with("Stay hungry"), generated_with(None), generated_with("Open 24 h")]
    meter.add(meter.process(batch), groups=[0, 1, 2])
    ned, exact, loose = (meter.measure(metric) for metric in meter.metrics)
    assert ned.items is not None
    assert exact.items is not None
    assert loose.items is not None
    assert ned.items.values.tolist() == pytest.approx([1 - 1 / 11, 1 - 4 / 9])  # edits: n to m; O, !, space and h
    assert exact.items.values.tolist() == [1, 0, 0, 1, 0]
    assert loose.items.values.tolist() == [1, 0, 1, 1, 0]
    assert exact.items.groups.tolist() == [0, 0, 2, 2, 2]
    assert (ned.network, ned.sha256) == ("text_detector/fake + text_judge/fake", "2 + 1")
    with pytest.raises(ConfigError, match="no picture has a text to show"):
        RenderedTextMeter(Lines(), Reader()).measure("rendered_text_ned")


def test_rendered_signs_are_read_by_the_real_networks(needs, tmp_path: Path) -> None:
    """Rendered letters are read by the real detector and judge."""
    from PIL import ImageDraw, ImageFont

    for network in ("text_detector/ppocrv6", "text_judge/easyocr"):
        needs(network)
    folder = tmp_path / "signs"
    folder.mkdir()
    for index, line in enumerate(("OPEN DOOR", "FRESH BREAD")):
        picture = Image.new("RGB", (256, 128), (245, 245, 240))
        ImageDraw.Draw(picture).text((14, 44), line, fill=(20, 20, 60), font=ImageFont.load_default(36))
        picture.save(folder / f"{index}.png")
    table = tmp_path / "words.jsonl"
    rows = [{"file": "0.png", "text": "OPEN DOOR"}, {"file": "1.png", "text": "FRESH MILK"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    wanted = ["rendered_word_accuracy", "rendered_text_ned"]
    found = evaluate_generated(folder, tmp_path / "out", metrics=wanted, words=str(table))
    assert found.metrics["rendered_word_accuracy"].value == pytest.approx(3 / 4)
    items = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    assert [item["read"] for item in items] == ["OPEN DOOR", "FRESH BREAD"]


def test_face_norms_are_embedding_lengths_of_all_faces() -> None:
    class Detector:
        name, sha256 = "face_detector/fake", "4"

        def detect(self, image: np.ndarray) -> pretrained.DetectedFaces:
            count = int(image[0, 0, 0])
            boxes = np.tile(np.float32([5, 5, 35, 35]), (count, 1))
            points = np.tile(np.float32([(14, 15), (26, 15), (20, 21), (15, 27), (25, 27)]), (count, 1, 1))
            return pretrained.DetectedFaces(boxes, points, np.ones(count, dtype=np.float32))

    class Embedder:
        name, sha256 = "face_quality/magface", "3"
        input_size = (112, 112)
        template = torch.tensor(pretrained.ARCFACE_TEMPLATE)

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.tensor([3.0, 4.0]) * (1 + index) for index in range(len(images))])

    meter = FaceNormMeter(Detector(), Embedder(), "magface")
    batch = []
    for row, count in enumerate((2, 0, 1)):
        generated = generated_with(None, row)
        generated.picture[:] = count
        batch.append(generated)
    meter.add(meter.process(batch), groups=[0, 1, 2])
    found = meter.measure("magface")
    assert found.items is not None
    assert found.items.values.tolist() == pytest.approx([5, 10, 5])
    assert found.items.groups.tolist() == [0, 0, 2]
    assert found.note == "3 faces in 2 of 3 pictures; the mean of their means is 6.25"
    assert (found.network, found.sha256) == ("face_detector/fake + face_quality/magface", "4 + 3")
    with pytest.raises(ConfigError, match="no face was found in 0 pictures"):
        FaceNormMeter(Detector(), Embedder(), "magface").measure("magface")


def with_settings(text: str) -> bytes:
    """Encode a picture with the given text as the settings of its generation."""
    metadata, file = PngInfo(), io.BytesIO()
    metadata.add_text("imtok", text)
    Image.new("RGB", (16, 16)).save(file, "PNG", pnginfo=metadata)
    return file.getvalue()


def test_prompt_info_prefers_tables_to_settings_in_the_file(tmp_path: Path) -> None:
    write_generated(tmp_path, "a.png", 'a sign that says "OPEN"')
    picture = (tmp_path / "a.png").read_bytes()
    sample = Sample(image=picture, path="deep/a.png", width=40, height=40, captions=["a caption"])
    info = PromptLookup().of(sample)
    assert (info.prompt, info.text, info.run) == ('a sign that says "OPEN"', "OPEN", "runs/x")
    (tmp_path / "words.csv").write_text("file,text\na.png,CLOSED\n")
    info = PromptLookup(words=str(tmp_path / "words.csv")).of(sample)
    assert (info.prompt, info.text) == ('a sign that says "OPEN"', "CLOSED")
    bare = Sample(image=encode(np.zeros((16, 16, 3), dtype=np.uint8)), path="b", width=16, height=16)
    assert PromptLookup().of(bare) == PromptInfo()
    for text in ("[" * 100_000, '["a", "list"]', "no JSON"):
        assert PromptLookup().of(replace(bare, image=with_settings(text))) == PromptInfo()
    lone_surrogate = PromptLookup().of(replace(bare, image=with_settings(json.dumps({"prompt": "\ud800"}))))
    assert lone_surrogate.prompt == "\\ud800"
    (tmp_path / "broken.csv").write_text("file,word\na.png,CLOSED\n")
    (tmp_path / "words-apart.csv").write_text("file,text\na.png,OPEN\na.png,OPEN\na.png,DOOR\n")
    for table, message in (("broken", ":2: names no text"), ("words-apart", ":4: has another text for a.png, which")):
        with pytest.raises(DataError, match=re.escape(f"{table}.csv{message}")):
            PromptLookup(words=str(tmp_path / f"{table}.csv"))


def test_marks_metrics_of_networks_that_trained_the_tokenizer(only_tiny: None, tmp_path: Path, monkeypatch) -> None:
    """The run stored in the picture's file names its tokenizer, whose losses name their networks."""
    run = tmp_path / "run"
    losses = {"text": {"network": NETWORK}, "text_weight": 1.0}
    for path, config in (
        (run, {"tokenizer": {"name": "tokenizer"}}),
        (run / "tokenizer", {"losses": losses, "training": {"phases": [{}]}}),
    ):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
    assert teachers_behind(str(run)) == {NETWORK}
    assert teachers_behind(str(tmp_path / "elsewhere")) == {UNKNOWN}
    assert teachers_behind("insighttok-nano") == {UNKNOWN}  # not a generator
    for run_name in ("x" * 300, "a\0b", "a/" * 3000):  # whatever a file contains
        assert teachers_behind(run_name) == {UNKNOWN}
    for path, config in (("list", "[1]"), ("other", '{"tokenizer": {"name": "tokenizer"}}')):
        (tmp_path / path / "tokenizer").mkdir(parents=True)
        (tmp_path / path / "config.json").write_text(config)
        (tmp_path / path / "tokenizer/config.json").write_text('{"losses": [], "training": 3}')
        assert teachers_behind(str(tmp_path / path)) == {UNKNOWN}
    folder = tmp_path / "drawn"
    folder.mkdir()
    write_generated(folder, "0.png", "a dog", str(run))
    found = evaluate_generated(folder, metrics=["inception_score"])
    assert found.teachers == [NETWORK]
    assert found.metrics["inception_score"].taught
    assert "no evidence" in str(found)
    write_generated(folder, "1.png", "a dog", "elsewhere")
    assert evaluate_generated(folder, metrics=["inception_score"]).teachers == [UNKNOWN, NETWORK]


def test_protocols_measure_what_is_available_and_list_deviations(only_tiny: None, generated: Path, real: Path) -> None:
    for protocol in PROTOCOLS.values():
        assert set(protocol.metrics) <= {*METRICS, *RECONSTRUCTION_METRICS}
    found = evaluate_generated(generated, reference=real, protocol="imagenet-val-reconstruction")
    assert found.metrics.keys() == {"fid", "inception_score"}
    assert found.deviations == [
        "psnr was not measured",
        "60 pictures, 50000 are wanted",
        "50 pictures of the reference, 50000 are wanted",
        "pictures of 32 x 32 pixels, 256 x 256 or 512 x 512 are wanted",
    ]
    assert "not the numbers of the protocol" in str(found)
    quotes = PROTOCOLS["quotes"]
    adm = PROTOCOLS["imagenet-generation"]
    counts = {
        "pictures": 50_000,
        "reference_pictures": 10_000,
        "prompts": 0,
        "texts": (),
        "metrics": dict.fromkeys(adm.metrics),
    }
    assert deviations(adm, sizes={(512, 512)}, statistics=("spatial", "frechet"), **counts) == []
    assert deviations(adm, sizes={(256, 256), (256, 300)}, statistics=("frechet",), **counts) == [
        "pictures of 256 x 256 pixels and others, 256 x 256 or 512 x 512 are wanted",
        "the reference lacks the statistics of the whole set (mu, sigma, mu_s, sigma_s)",
    ]
    counts = {"pictures": 200, "sizes": {(9, 9)}, "reference_pictures": None, "prompts": 200}
    texts = ("x" * 100, "x" * 300)
    read = {"rendered_text_ned": "text_detector/ppocrv6 + text_judge/parseq"}
    detector = "lines are found by PP-OCRv6's detector, not by docTR's"
    assert deviations(quotes, metrics=read, texts=texts, **counts) == [detector]
    other = {"rendered_text_ned": "text_judge/easyocr"}
    assert deviations(quotes, metrics=other, texts=texts, **counts) == [
        detector,
        "rendered_text_ned was measured through text_judge/easyocr, text_judge/parseq is wanted",
    ]
    assert deviations(quotes, metrics={}, texts=("x" * 99,), **counts) == [
        detector,
        "rendered_text_ned was not measured",
        "1 texts have fewer than 100 or more than 300 characters",
    ]
    crowds = {
        "metrics": {"magface": "face_quality/magface"},
        "pictures": 300,
        "sizes": (),
        "reference_pictures": None,
        "prompts": 15,
        "texts": (),
    }
    (faces,) = deviations(PROTOCOLS["crowds"], pictures_of_prompts=(20,) * 15, **crowds)
    assert "MTCNN" in faces
    uneven = (20,) * 13 + (19, 21)  # the totals of pictures and prompts are those of the protocol
    assert deviations(PROTOCOLS["crowds"], pictures_of_prompts=uneven, **crowds) == [
        faces,
        "2 prompts have more or fewer than 20 pictures",
    ]
