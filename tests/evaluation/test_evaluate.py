"""Evaluation from pictures to metrics.json and report.html, with an untrained tokenizer and real networks."""

import contextlib
import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode, functional

from imtok import presets, pretrained
from imtok.checkpoints import RunFolder
from imtok.cli import main
from imtok.config import ConfigError, InputError, to_dict
from imtok.data.pictures import decode, encode, from_uint8
from imtok.data.readers import open_dataset
from imtok.data.sample import Face, InMemoryDataset, Sample, TextRegion
from imtok.data.shards import ShardReader, ShardWriter
from imtok.data.synthetic import SyntheticPictures, synthesize
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.meters import OriginalPicture
from imtok.evaluation.preprocessing import CentreCrop, PadToSquare
from imtok.evaluation.ranks import together
from imtok.evaluation.reconstruct import reconstruct
from imtok.evaluation.reconstructors import FolderReconstructor, open_reconstructor, self_checks
from imtok.evaluation.sets import EvaluationSet
from imtok.evaluation.teachers import UNKNOWN, teachers_of, teachers_of_weights
from imtok.evaluation.text import same_letters
from imtok.pretrained import FeatureNetwork
from imtok.tokenizers.catalog import build, load

PIXELS = ("psnr", "ssim", "bits_per_pixel", "codebook_usage", "codebook_perplexity")


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "signs"
    synthesize(str(folder), count=12, seed=5)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained tokenizer in a run folder."""
    torch.manual_seed(0)
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "untrained")
    folder.write_config(to_dict(presets.get("insighttok-debug")))
    folder.write_model(presets.create_tokenizer("insighttok-debug").weights())
    return str(folder.path)


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A photograph of 200 x 256 pixels with one face, whose landmarks were detected by MTCNN and copied here."""
    picture = np.asarray(Image.fromarray(data.astronaut()[:, :400]).resize((200, 256)))
    points = ((99.9, 49.6), (119.5, 49.0), (110.4, 60.7), (101.9, 69.9), (119.7, 69.5))
    face = Face(box=(88.0, 29.0, 130.0, 85.0), landmarks=points)
    folder = tmp_path_factory.mktemp("data") / "portrait"
    with ShardWriter(str(folder)) as writer:
        writer.write(Sample(image=encode(picture), path="astronaut.png", width=200, height=256, faces=[face]))
    return str(folder)


def test_self_checks_have_known_scores_and_output_files_agree(run: str, signs: str, tmp_path: Path, needs) -> None:
    for network in ("text_judge/easyocr", "perceptual/vgg16", "vision/efficientnet_lite0"):
        needs(network)
    assert main(["evaluate", run, "--data", signs, "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "metrics.json").read_text())
    scores = {result["tokenizer"]: result["metrics"] for result in written["results"]}
    identity = scores["identity"]
    assert identity["psnr"]["value"] is None  # infinite
    for metric, perfect in {"ssim": 1, "text_accuracy": 1, "text_ned": 1, "text_accuracy_alnum": 1}.items():
        assert identity[metric]["value"] == pytest.approx(perfect)
    assert identity["vgg16_distance"]["value"] == pytest.approx(0, abs=1e-5)
    assert identity["fd_efficientnet_lite0"]["value"] == pytest.approx(0, abs=1e-3)
    for check in ("jpeg-30", "down-and-up"):
        assert scores[check]["ssim"]["value"] < 1
        assert 0.3 < scores[check]["text_accuracy"]["value"] <= 1
        assert scores[check]["fd_efficientnet_lite0"]["value"] > 0
    untrained = scores["untrained"]
    assert untrained["text_accuracy"]["value"] == 0
    assert untrained["bits_per_pixel"]["value"] == pytest.approx(6 / 64)  # 64 codes, f8
    assert untrained["text_accuracy"]["network"] == "text_judge/easyocr"
    assert len(untrained["text_accuracy"]["sha256"]) == 64

    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    words = [item for item in items if item["kind"] == "word"]
    readable = [word for word in words if same_letters(word["original"], word["text"])]
    assert scores["jpeg-30"]["text_accuracy_alnum"]["count"] == len(readable)
    by_bucket: dict[int, list[bool]] = {}
    for word in readable:
        x0, y0, x1, y1 = word["box"]
        size = max(x1 - x0, y1 - y0) / len(word["text"]) / 128
        bucket = sum(size >= limit for limit in (0.06, 0.12, 0.18))
        by_bucket.setdefault(bucket, []).append(same_letters(word["read"]["jpeg-30"], word["text"]))
    large_enough = [kept for kept in by_bucket.values() if len(kept) >= 20] or list(by_bucket.values())
    expected = np.mean([np.mean(kept) for kept in large_enough])
    assert scores["jpeg-30"]["text_accuracy_alnum"]["value"] == pytest.approx(expected)
    assert 1 < identity["class_score_efficientnet_lite0"]["value"] < 12  # a picture's classes are not certain
    for metric in ("psnr", "fd_efficientnet_lite0", "class_score_efficientnet_lite0", "codebook_usage"):
        assert untrained[metric]["count"] == 12

    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://", re.sub(r"data:[^\"]*", "", page))
    assert len(re.findall(r"data:image/jpeg;base64,", page)) > 12
    assert "untrained" in page


def test_folder_of_reconstructions_scores_like_its_tokenizer(run: str, signs: str, tmp_path: Path) -> None:
    originals = tmp_path / "originals"
    originals.mkdir()
    for index in range(12):
        picture = np.ascontiguousarray(data.coffee()[20 * index : 20 * index + 50, : 60 + index])
        (originals / f"{index}.png").write_bytes(encode(picture))
    reconstruct(run, [originals], tmp_path / "drawn")
    found = evaluate([run, str(tmp_path / "drawn")], str(originals), metrics=PIXELS, checks=False)
    for metric in ("psnr", "ssim"):
        values = [found.score(name, "originals", metric).value for name in ("untrained", str(tmp_path / "drawn"))]
        assert values[0] == pytest.approx(values[1])
    assert {(comparison.metric, comparison.difference) for comparison in found.comparisons} == {
        ("psnr", 0.0),
        ("ssim", 0.0),
    }
    assert not any(comparison.counts for comparison in found.comparisons)
    assert "codebook_usage" not in found.results[1].metrics


def test_codebook_usage_and_perplexity_are_measured_per_codebook(signs: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = RunFolder(tmp_path / "two")
    run.write_config(to_dict(presets.get("fqgan-debug")))
    run.write_model(presets.create_tokenizer("fqgan-debug").weights())
    metrics = ["codebook_usage", "codebook_perplexity", "shared_information"]
    (found,) = evaluate(str(run.path), signs, metrics=metrics, checks=False).results
    model, codes = load(str(run.path)), []
    for sample in open_dataset(signs):
        with torch.no_grad():
            codes.append(model.encode(from_uint8(decode(sample.image))[None]).codes[0])
    all_codes = torch.cat(codes)
    for index, size in enumerate((32, 16)):
        used = found.metrics[f"codebook_usage_{index}"]
        assert used.value == pytest.approx(len(all_codes[:, index].unique()) / size)
        assert used.note == f"{len(all_codes)} tokens, {size} codes"
        shares = all_codes[:, index].bincount() / len(all_codes)
        entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
        assert found.metrics[f"codebook_perplexity_{index}"].value == pytest.approx(entropy.exp().item(), rel=1e-4)
    assert found.metrics.keys() == {
        *(f"codebook_{kind}_{index}" for kind in ("usage", "perplexity") for index in (0, 1)),
        "shared_information",
    }


def test_face_similarity_orders_identity_jpeg_and_untrained(run: str, portrait: str, needs) -> None:
    needs("face_judge/dlib")
    found = evaluate(run, portrait, metrics=["face_similarity"])
    names = ("identity", "jpeg-30", "untrained")
    values = [found.score(name, "portrait", "face_similarity").value for name in names]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[0] > values[1] > values[2]  # pyright: ignore[reportOptionalOperand]
    assert found.score("identity", "portrait", "face_similarity").count == 1


def test_scores_do_not_depend_on_batching(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of two sizes in turn, evaluated one by one and in batches; pictures of one cluster are one group."""
    rng = np.random.default_rng(0)
    with ShardWriter(str(tmp_path / "mixed")) as writer:
        for index in range(24):
            height, width = ((32, 48), (64, 40))[index // 3 % 2]
            pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            names = {"path": f"{index % 5}.png", "cluster": str(index % 12)}  # paths repeat
            writer.write(Sample(image=encode(pixels), width=width, height=height, **names))
    batched = evaluate(run, tmp_path / "mixed", metrics=["psnr", "codebook_usage"], checks=False)
    monkeypatch.setattr("imtok.evaluation.sets._BATCH", 1)
    unbatched = evaluate(run, tmp_path / "mixed", metrics=["psnr", "codebook_usage"], checks=False)
    for metric in ("psnr", "codebook_usage"):
        values = [found.score("untrained", "mixed", metric).value for found in (batched, unbatched)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert batched.score("untrained", "mixed", "psnr").groups == 12
    assert [list(example.pictures) for example in batched.examples] == [["original", "untrained"]] * 12
    assert {example.pictures["original"].shape for example in batched.examples} == {(32, 48, 3), (64, 40, 3)}


def test_kept_pictures_are_downscaled_and_exclude_self_checks(run: str, tmp_path: Path) -> None:
    """Pictures of self-checks are not kept: no report shows them, and they would fill the memory."""
    (tmp_path / "large").mkdir()
    large = np.repeat(np.repeat(data.coffee(), 2, axis=0), 2, axis=1)
    (tmp_path / "large" / "a.png").write_bytes(encode(large))
    found = evaluate(run, tmp_path / "large", metrics=["psnr"])
    kept = [picture for example in found.examples for picture in example.pictures.values()]
    kept += [picture for case in found.cases for picture in (case.original, *case.reconstructions.values())]
    assert [list(example.pictures) for example in found.examples] == [["original", "untrained"]]
    assert {picture.shape for picture in kept} == {(256, 384, 3)}
    assert all(picture.base is None for picture in kept)  # none is a view that keeps a batch in memory


def test_padding_is_not_scored(run: str, tmp_path: Path) -> None:
    """A strip's PSNR is computed on its own pixels; a folder of reconstructions is prepared like the originals."""
    strip = np.ascontiguousarray(data.coffee()[100:228, 40:296])  # 256 x 128, so half of the square is black
    for folder, picture in (("originals", strip), ("drawn", decode(encode(strip, "JPEG", quality=10)))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "strip.png").write_bytes(encode(picture))
    found = evaluate([tmp_path / "drawn"], tmp_path / "originals", metrics=["psnr"], size=256, checks=False)
    error = np.square(strip.astype(float) - decode((tmp_path / "drawn/strip.png").read_bytes())).mean()
    expected = 10 * np.log10(255**2 / error)
    assert found.results[0].metrics["psnr"].value == pytest.approx(expected, abs=1e-4)


def test_size_option_pads_resizes_and_restores(portrait: str, needs) -> None:
    needs("face_judge/dlib")
    found = evaluate(str(CHECKPOINT), portrait, metrics=["psnr", "face_similarity", "bits_per_pixel"], size=128)
    assert found.preprocessing.endswith("128 px")
    similarity = found.score("identity", "portrait", "face_similarity").value
    assert similarity is not None
    assert 0.8 < similarity < 0.9999  # reduced by resizing to 128 pixels and back
    # Infinite: PSNR compares with the prepared picture.
    assert found.score("identity", "portrait", "psnr").value is None


CHECKPOINT = Path(__file__).parents[1] / "tokenizers/reference/insighttok_tiny.pt"


def test_pad_to_square_is_undone_by_content_and_restore() -> None:
    picture = np.ascontiguousarray(data.coffee()[:300, :420])
    fit = PadToSquare(256)
    square = fit.prepare(picture)
    assert square.shape == (256, 256, 3)
    assert fit.content(square, picture).shape == (183, 256, 3)  # 300 / 420 * 256 = 182.9, rounded up
    assert max(square[:36].max(), square[36 + 183 :].max()) == 0 < square[36].max()  # (256 - 183) // 2
    restored = fit.restore(square, picture)
    assert restored.shape == picture.shape
    assert np.abs(restored.astype(float) - picture).mean() < 6


def test_lpips_uses_the_channel_weights_of_its_network(run: str, signs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean(FeatureNetwork):
        """Outputs a picture's red channel plus 2 and a constant channel; only the first has a weight above 0."""

        name, sha256 = "perceptual/lpips_vgg", "0" * 64

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.5, 0.0]))

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [torch.stack([images[:, 0] + 2, torch.ones_like(images[:, 0])], dim=1)]

        def channel_weights(self) -> list[torch.Tensor]:
            return [self.weight]

    monkeypatch.setattr("imtok.pretrained.load", {"perceptual/lpips_vgg": Mean().freeze()}.__getitem__)
    found = evaluate("jpeg:5", signs, metrics=["lpips"], count=3)
    expected = []
    for row in range(3):
        original = decode(ShardReader(signs)[4 * row].image)
        reds = [one[..., 0] / 127.5 + 1 for one in (original, decode(encode(original, "JPEG", quality=5)))]
        first, second = (red / np.hypot(red, 1) for red in reds)
        expected.append(0.5 * np.square(first - second).mean())
    score = found.score("jpeg:5", "signs", "lpips")
    assert score.value == pytest.approx(np.mean(expected), rel=1e-3)
    assert (score.network, score.count) == ("perceptual/lpips_vgg", 3)
    assert found.score("identity", "signs", "lpips").value == 0


def test_centre_crop_transforms_words_and_faces() -> None:
    """By hand: the square of a 200 x 100 picture begins 50 pixels from the left, and is halved."""
    picture = np.ascontiguousarray(data.coffee()[:100, :200])
    boxes = {
        "inside": (60.0, 20.0, 100.0, 40.0),
        "away": (10.0, 20.0, 45.0, 40.0),
        "cut": (40.0, 20.0, 80.0, 40.0),  # three quarters of it are inside the square, which is not enough
        "rim": (110.0, 0.0, 155.0, 9.0),  # eight ninths of it are inside, which is enough
    }
    words = [TextRegion(box=box, text=text, ratio=0.1) for text, box in boxes.items()]
    points = ((90.0, 30.0), (110.0, 30.0), (100.0, 40.0), (92.0, 50.0), (108.0, 50.0))
    faces = [Face(box=(80.0, 20.0, 120.0, 60.0), landmarks=points), Face(box=(30.0, 20.0, 60.0, 60.0))]
    sample = Sample(image=b"", path="x", width=200, height=100, words=words, faces=faces)
    cropped, pixels = CentreCrop(50).cut(sample, picture)
    halved = picture.reshape(50, 2, 100, 2, 3).astype(float).mean((1, 3))
    assert abs(pixels - halved[:, 25:75]).max() <= 1  # rounded along rows and along columns
    assert (cropped.width, cropped.height, cropped.path) == (50, 50, "x")
    assert [(word.text, word.box, word.ratio) for word in cropped.words or []] == [
        ("inside", (5, 10, 25, 20), 0.2),
        ("rim", (30, 0, 50, 4.5), 0.2),
    ]
    (face,) = cropped.faces or []
    assert (face.box, face.landmarks) == ((15, 10, 35, 30), ((20, 15), (30, 15), (25, 20), (21, 25), (29, 25)))
    assert CentreCrop(50).cut(sample_of("y"), picture)[0].words is None


@pytest.mark.parametrize(("height", "width"), [(100, 130), (127, 90), (64, 64), (48, 60)])
def test_centre_crop_below_twice_the_size_equals_torchvision(height: int, width: int) -> None:
    picture = np.ascontiguousarray(data.coffee()[:height, :width])
    resized = functional.resize(Image.fromarray(picture), 64, InterpolationMode.BICUBIC)
    _, pixels = CentreCrop(64).cut(Sample(image=b"", path="x", width=width, height=height), picture)
    left, top = ((side - 64) // 2 for side in resized.size)
    assert (pixels == np.asarray(resized)[top : top + 64, left : left + 64]).all()


def test_scores_by_networks_used_in_training_are_marked(tmp_path: Path, signs: str, needs) -> None:
    needs("perceptual/vgg16")
    config: dict[str, Any] = to_dict(presets.get("insighttok-debug"))
    assert teachers_of(config) == {"text_features/ppocrv6", "face_features/mobilefacenet"}
    config["losses"]["perceptual_weight"] = 0.5
    assert "perceptual/vgg16" in teachers_of(config)
    folder = RunFolder(tmp_path / "taught")
    folder.write_config(config)
    folder.write_model(presets.create_tokenizer("insighttok-debug").weights())
    found = evaluate([str(folder.path), "jpeg:30"], signs, tmp_path / "out", metrics=["vgg16_distance", "psnr"])
    assert found.score("taught", "signs", "vgg16_distance").taught
    assert not found.score("jpeg-30", "signs", "vgg16_distance").taught
    assert {one.metric: one.taught for one in found.comparisons} == {"vgg16_distance": True, "psnr": False}
    (starred,) = [
        line for line in str(found).splitlines() if line.startswith("jpeg:30 - taught") and line.endswith("*")
    ]
    assert "vgg16_distance" in starred
    page = (tmp_path / "out/report.html").read_text()
    assert page.count('<span class="taught">') == 2  # the score, and the difference


def test_broken_network_drops_only_its_metric(run: str, signs: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    load = pretrained.load

    def broken(name: str, *rest: Any) -> Any:
        if name == "perceptual/vgg16":
            raise ConfigError(f"{name}: a broken file")
        return load(name, *rest)

    monkeypatch.setattr(pretrained, "load", broken)
    found = evaluate(run, signs, metrics=["psnr", "vgg16_distance"], count=2, checks=False)
    assert found.score("untrained", "signs", "psnr").value
    assert [(failure.metric, failure.why) for failure in found.failed] == [
        ("vgg16_distance", "perceptual/vgg16: a broken file")
    ]
    all_metrics = evaluate(run, signs, count=2, checks=False)
    assert all_metrics.score("untrained", "signs", "psnr").value
    assert ("vgg16_distance", "perceptual/vgg16: a broken file") in [
        (failure.metric, failure.why) for failure in all_metrics.failed
    ]
    monkeypatch.setattr(pretrained, "load", lambda name, *rest: broken("perceptual/vgg16"))
    text_metrics = evaluate(run, signs, metrics=["psnr", "text_ned"], count=2, checks=False)
    assert [failure.metric for failure in text_metrics.failed] == ["text_ned"]
    with pytest.raises(ConfigError, match="a broken file"):  # an unknown judge may be a misspelt name
        evaluate(run, signs, metrics=["psnr", "text_ned"], text_judge="nobody", count=2, checks=False)


@pytest.mark.usefixtures("no_own_weights")
def test_missing_named_judge_drops_only_its_metrics(run: str, signs: str) -> None:
    found = evaluate(run, signs, text_judge="text_judge/parseq", count=2, checks=False)
    assert {failure.metric for failure in found.failed} == {"text_accuracy", "text_ned", "text_accuracy_alnum"}
    assert all(failure.why.startswith("text_judge/parseq is missing") for failure in found.failed)
    assert found.score("untrained", "signs", "psnr").value


@torch.no_grad()
def test_network_that_outputs_nan_drops_its_metric(run: str, signs: str, needs, monkeypatch) -> None:
    needs("perceptual/vgg16")
    network = copy.deepcopy(pretrained.load("perceptual/vgg16"))
    next(network.parameters()).fill_(torch.nan)
    monkeypatch.setattr(pretrained, "load", lambda name, *rest: network)
    found = evaluate(run, signs, metrics=["psnr", "vgg16_distance"], count=2, checks=False)
    assert found.score("untrained", "signs", "psnr").value
    assert "perceptual/vgg16: outputs NaN or infinity; its weights may be broken" in {
        failure.why for failure in found.failed
    }


def test_damaged_config_is_named_in_the_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_config(to_dict(presets.get("insighttok-debug")) | {"losses": None})
    with pytest.raises(ConfigError, match=r"run/config\.json: its losses and phases are not those of a run"):
        teachers_of_weights(folder.path)


def sample_of(path: str) -> Sample:
    return Sample(image=b"", path=path, width=1, height=1)


def test_self_checks_copy_compress_and_resize() -> None:
    picture = np.ascontiguousarray(data.coffee()[:101, :77])
    by_name = {check.name: check.reconstruct([picture], [sample_of("x")])[0].picture for check in self_checks()}
    assert (by_name["identity"] == picture).all()
    assert (by_name["jpeg-30"] == decode(encode(picture, "JPEG", quality=30))).all()
    assert by_name["down-and-up"].shape == picture.shape
    assert 0 < np.abs(by_name["down-and-up"].astype(float) - picture).mean() < 20


@pytest.mark.usefixtures("no_own_weights")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["mse"]}, "no metric is called 'mse'; there are psnr"),
        ({"metrics": ["fid"]}, "vision/inception is missing"),
        ({"tokenizers": []}, "name at least one tokenizer"),
        ({"tokenizers": ["RUN", "RUN"]}, "untrained; rename a folder"),
        ({"tokenizers": ["absent"]}, "absent: no such run folder"),
        ({"tokenizers": ["absent@0.2"]}, "absent@0.2: there is no folder absent"),
        ({"metrics": []}, "and one metric"),
        ({"data": "absent"}, "absent: no such file or folder"),
        ({"tokenizers": ["EMPTY"]}, "neither a run folder"),
        ({"size": 8}, "size must be 16 or more"),
        ({"count": 0}, "count must be at least 1"),
        ({"fit": "crop"}, "a crop needs a size"),
        ({"protocol": "crowds"}, "the protocol crowds is of generated pictures: imtok evaluate-generated"),
    ],
)
def test_rejects_bad_input_with_a_one_line_error(
    changes: dict[str, Any], message: str, run: str, signs: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"tokenizers": run, "data": signs, "metrics": ["psnr"]} | changes
    if isinstance(arguments["tokenizers"], list):
        places = {"RUN": run, "EMPTY": str(tmp_path)}
        arguments["tokenizers"] = [places.get(name, name) for name in arguments["tokenizers"]]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        evaluate(**arguments)
    assert "\n" not in str(error.value)


def test_rejects_a_network_that_cannot_judge_texts(run: str, signs: str, needs) -> None:
    needs("face_judge/dlib")
    with pytest.raises(ConfigError, match="face_judge/dlib: cannot judge texts"):
        evaluate(run, signs, metrics=["text_ned"], text_judge="face_judge/dlib")


def test_teachers_include_the_network_of_every_loss() -> None:
    """`teachers_of` lists the networks by hand; a new loss must be added there."""
    config = to_dict(presets.get("insighttok"))
    losses = config["losses"]
    losses["representation"]["targets"] = [{"branch": 0, "network": "vision/some", "dim": 8}]
    networks = set(re.findall(r'network": "([^"]+)"', json.dumps(losses)))
    losses |= {name: 1.0 for name in losses if name.endswith("_weight")}
    assert len(networks) == 5
    assert teachers_of(config) == networks


@pytest.mark.slow  # a minute
def test_downscaling_reduces_accuracy_of_small_words_most(needs: Callable[[str], Any]) -> None:
    """In TokBench's row without a model, its own judge reads 85.91, 94.40 and 98.37 % of its words at 256 px."""
    needs("text_judge/easyocr")
    pictures = {"signs": SyntheticPictures(300, seed=9, size=512, split="test", word_height=(8.0, 40.0))}
    found = evaluate("jpeg:30", pictures, size=256, metrics=["text_accuracy"], cache=False)
    for check in ("identity", "down-and-up"):
        buckets = found.score(check, "signs", "text_accuracy").buckets
        assert buckets is not None
        small, medium, large = (buckets[name]["value"] for name in ("small", "medium", "large"))
        assert small + 0.1 < medium < large - 0.05
        assert large > 0.5


def test_folder_of_reconstructions_must_match_its_originals(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(np.zeros((20, 20, 3), dtype=np.uint8)))
    folder = open_reconstructor(str(tmp_path))
    assert isinstance(folder, FolderReconstructor)
    original = np.zeros((20, 24, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="has 20 x 20 pixels, its original 24 x 20"):
        folder.reconstruct([original], [sample_of("deep/a.jpg")])
    preview = SimpleNamespace(
        samples=lambda: map(sample_of, ("deep/a.jpg", "b.jpg", "c.jpg", "broken.jpg")),
        prepared=list,
        readable=lambda paths: (path for path in ("b.jpg", "c.jpg") if path in paths),
    )
    with pytest.raises(
        ConfigError, match=r"reconstruction of b.jpg \(3 pictures have none\); there should be a b\.png"
    ):
        folder.begin(preview)
    square = np.zeros((20, 20, 3), dtype=np.uint8)
    (found,) = folder.reconstruct([square], [sample_of("deep/a.jpg")])
    assert found.file is not None
    folder.add(found.file, "deep/a.jpg")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.png").write_bytes(encode(square + 5))
    in_folders = open_reconstructor(str(tmp_path))
    for path, expected in (("set/deep/a.jpg", 5), ("set/other/a.jpg", 0), ("deep/a.jpg", 5)):
        assert in_folders.reconstruct([square], [sample_of(path)])[0].picture.max() == expected
    (tmp_path / "deep/a.png").unlink()
    for suffix in ("webp", "jpg"):
        (tmp_path / f"a.{suffix}").write_bytes(encode(square + 9))
    both = open_reconstructor(str(tmp_path))
    (same_format,) = both.reconstruct([square], [sample_of("deep/a.webp")])
    assert same_format.picture.max() == 9
    with pytest.raises(ConfigError, match=r"is it the reconstruction of deep/a\.bmp, or is a\.\w+\? Remove one"):
        both.reconstruct([square], [sample_of("deep/a.bmp")])
    with pytest.raises(ConfigError, match="@0: the rate is a number of bits per pixel"):
        open_reconstructor(f"{tmp_path}@0")
    with pytest.raises(ConfigError, match=r"is it the reconstruction of deep/a\.jpg or of other/a\.jpg"):
        folder.add(found.file, "other/a.jpg")
    (again, from_another_set) = folder.reconstruct([square, square + 1], [sample_of("deep/a.jpg")] * 2)
    assert again.file is not None
    assert from_another_set.file is not None
    folder.add(again.file, "deep/a.jpg")
    with pytest.raises(ConfigError, match=r"two sets have another deep/a\.jpg each"):
        folder.add(from_another_set.file, "deep/a.jpg")


def test_reconstructors_have_distinct_names(tmp_path: Path) -> None:
    for name in ("photos", "a/original", "identity"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(encode(np.full((32, 32, 3), len(name), dtype=np.uint8)))
    for place in ("one", "two"):
        run = RunFolder(tmp_path / place / "run")
        config = presets.get("insighttok-debug")
        run.write_config(to_dict(config))
        run.write_model(build(config.tokenizer).weights())
    runs = [str(tmp_path / place / "run") for place in ("one", "two")]
    found = evaluate([*runs, "jpeg:30"], tmp_path / "photos", metrics=["psnr"])
    assert list(found.tokenizers)[:3] == [*runs, "jpeg:30"]
    assert found.tokenizers[runs[0]]["teachers"]
    assert found.tokenizers["jpeg:30"]["teachers"] == []
    with contextlib.chdir(tmp_path / "a"):
        with pytest.raises(ConfigError, match="two tokenizers are called original; rename a folder"):
            evaluate("original", "../photos", metrics=["psnr"])
        found = evaluate("../a/original", "../photos", tmp_path / "out", metrics=["psnr"], checks=False)
    assert found.tokenizers["../a/original"]["teachers"] == [UNKNOWN]
    page = (tmp_path / "out/report.html").read_text()
    assert "Not everything that ../a/original was trained with is known" in page


def test_batches_of_large_originals_are_limited_in_pixels(tmp_path: Path) -> None:
    pictures = [encode(np.zeros((1024, 1024, 3), dtype=np.uint8), "JPEG")] * 10
    samples = InMemoryDataset([replace(sample_of(f"{index}.jpg"), image=one) for index, one in enumerate(pictures)])
    pixels_per_batch = []

    def process(batch: list[OriginalPicture]) -> None:
        pixels_per_batch.append(sum(one.original[..., 0].size for one in batch))

    with together() as ranks:
        list(EvaluationSet("large", samples, PadToSquare(32), None).map_batches(process, ranks))
    assert max(pixels_per_batch) == 4 * 1024 * 1024
    assert sum(pixels_per_batch) == 10 * 1024 * 1024


def test_unreadable_pictures_are_counted_and_left_out(tmp_path: Path, run: str) -> None:
    (tmp_path / "a.png").write_bytes(encode(np.zeros((32, 32, 3), dtype=np.uint8)))
    (tmp_path / "b.png").write_bytes(b"not a picture")
    (tmp_path / "c.png").write_bytes(encode(np.zeros((9, 40, 3), dtype=np.uint8)))  # too low for SSIM
    found = evaluate(run, str(tmp_path), metrics=["psnr"], checks=False)
    assert (found.sets[0].pictures, found.sets[0].unreadable) == (1, 2)
    (tmp_path / "a.png").write_bytes(b"neither")
    with pytest.raises(ConfigError, match="none of the pictures can be read"):
        evaluate(run, str(tmp_path), metrics=["psnr"], checks=False)


def test_unreadable_picture_needs_no_reconstruction(tmp_path: Path) -> None:
    for folder in ("pictures", "drawn"):
        (tmp_path / folder).mkdir()
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            (tmp_path / folder / f"{index}.png").write_bytes(encode(noise))
    encoded = (tmp_path / "pictures/2.png").read_bytes()
    (tmp_path / "pictures/2.png").write_bytes(encoded[: len(encoded) // 2])  # the header is intact
    (tmp_path / "drawn/2.png").unlink()
    found = evaluate(str(tmp_path / "drawn"), str(tmp_path / "pictures"), metrics=["psnr"], checks=False)
    assert found.results[0].metrics["psnr"].count == 2
    (tmp_path / "drawn/1.png").unlink()
    with pytest.raises(ConfigError, match=r"drawn: holds no reconstruction of 1\.png \(2 pictures have none\)"):
        evaluate(str(tmp_path / "drawn"), str(tmp_path / "pictures"), metrics=["psnr"], checks=False)


def test_output_files_of_an_evaluation_are_not_read_as_data(tmp_path: Path) -> None:
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        (tmp_path / f"{index}.png").write_bytes(encode(noise))
    for _ in range(2):  # into the same folder
        found = evaluate("jpeg:30", str(tmp_path), tmp_path, metrics=["psnr"], checks=False)
        assert found.results[0].metrics["psnr"].count == 3
    assert (tmp_path / "items.jsonl").exists()
