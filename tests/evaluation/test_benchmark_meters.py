"""Meters of GenEval and DPG-Bench: scores computed by hand, and the command line with tiny networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data

from imtok import pretrained
from imtok.cli import main
from imtok.config import ConfigError
from imtok.data.readers import read_table
from imtok.data.sample import Sample
from imtok.evaluation.benchmark_meters import GENEVAL, DPGMeter, GenEvalMeter
from imtok.evaluation.generated_meters import Generated
from imtok.evaluation.geneval import COLOUR_TEXTS, COLOURS, TASKS, ColoursByCLIP
from imtok.evaluation.prompt_info import PromptInfo
from imtok.evaluation.results import score_of
from imtok.pretrained.captioner import VisionLanguageModel
from imtok.pretrained.objects import DetectedObject

LINES = [
    {"tag": tag, "prompt": f"{tag} of {thing}", "include": [{"class": thing, "count": 1}]}
    for tag in TASKS
    for thing in ("dog", "cat")
]
QUESTIONS = """item_id,text,proposition_id,dependency,tuple,question_natural_language
dog,a red dog on grass,1,0,entity - whole (dog),Is there a dog?
dog,a red dog on grass,2,1,"attribute - color (dog, red)",Is the dog red?
dog,a red dog on grass,3,0,entity - whole (grass),Is there grass?
dog,a red dog on grass,4,"1, 3","relation - spatial (dog, grass, on)",Is the dog on the grass?
sea,the sea,1,0,entity - whole (sea),Is there a sea?
"""
TEXTS = ["Is there a dog?", "Is the dog red?", "Is there grass?", "Is the dog on the grass?", "Is there a sea?"]


def make_generated(prompt: str | None, value: int = 0) -> Generated:
    picture = np.full((8, 8, 3), value, dtype=np.uint8)
    return Generated(
        sample=Sample(image=b"", path="x", width=8, height=8), picture=picture, prompt_info=PromptInfo(prompt)
    )


class DogDetector:
    """Detects a dog in bright pictures, and never a cat."""

    name, sha256 = "object_detector/dogs", "1"

    def detect(self, picture: np.ndarray) -> list[DetectedObject]:
        return [DetectedObject("dog", (0.0, 0.0, 5.0, 5.0), 0.95)] * int(picture.mean() > 100)


class RecordedAnswerer:
    """Answers yes to each question in `TEXTS` whose bit, by position, is set in the pixels' value."""

    name, sha256 = "question_answerer/recorded", "2"

    def answer(self, picture: np.ndarray, question: str) -> str:
        return "Yes." if picture[0, 0, 0] & 1 << TEXTS.index(question) else "no"


@pytest.fixture
def geneval_file(tmp_path: Path) -> str:
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    return str(tmp_path / "evaluation_metadata.jsonl")


@pytest.fixture
def dpg_file(tmp_path: Path) -> str:
    (tmp_path / "dpg_bench.csv").write_text(QUESTIONS)
    return str(tmp_path / "dpg_bench.csv")


def measure_all(meter: Any, batch: list[Generated], groups: list[int]) -> dict[str, float]:
    meter.add(meter.process(batch), groups)
    values = {}
    for metric in meter.metrics:
        try:
            values[metric] = score_of(meter.measure(metric), frozenset()).value
        except ConfigError:
            continue
    return values


def test_geneval_weights_tasks_equally(geneval_file: str, tiny_clip: Path) -> None:
    meter: Any = GenEvalMeter(
        geneval_file, DogDetector(), ColoursByCLIP(pretrained.load("clip/transformers", tiny_clip))
    )
    prompts = [(f"{tag} of dog", 200) for tag in TASKS] + [("counting of cat", 200)] * 3 + [("position of dog", 0)]
    batch = [make_generated(prompt, value) for prompt, value in prompts] + [
        make_generated("something else"),
        make_generated(None),
    ]
    found = measure_all(meter, batch, list(range(len(batch))))
    expected = dict.fromkeys(GENEVAL, 1.0) | {"geneval_counting": 1 / 4, "geneval_position": 1 / 2}
    assert found == pytest.approx(expected | {"geneval": (4 + 1 / 4 + 1 / 2) / 6})
    assert len(meter.items()) == 10
    assert meter.items()[6]["reasons"] == ("0 cat, 1 are wanted",)
    measure = meter.measure("geneval")
    assert measure.network == "object_detector/dogs + clip/transformers"
    assert "2 of other prompts" in measure.note


def test_geneval_total_requires_pictures_of_every_task(geneval_file: str, tiny_clip: Path) -> None:
    meter: Any = GenEvalMeter(
        geneval_file, DogDetector(), ColoursByCLIP(pretrained.load("clip/transformers", tiny_clip))
    )
    assert measure_all(meter, [make_generated("counting of dog", 200)], [0]) == {"geneval_counting": 1.0}
    with pytest.raises(ConfigError, match="no picture is of a prompt of the task single_object"):
        meter.measure("geneval")


def test_dpg_weights_prompts_equally(dpg_file: str) -> None:
    meter: Any = DPGMeter(dpg_file, RecordedAnswerer())
    # All yes: 1. No dog: its colour and relation count as no too, grass as yes: 1/4. No grass: the relation counts as
    # no too: 2/4. All no: 0.
    dogs = [("a red  dog on\ngrass", 0b1111)] + [("a red dog on grass", value) for value in (0b1110, 0b1011, 0)]
    values = [*dogs, ("the sea", 0b10000), ("no prompt of it", 0b11111)]
    found = measure_all(meter, [make_generated(prompt, value) for prompt, value in values], [0, 0, 0, 0, 1, 2])
    # entity: dog 1 0 1 0, grass 1 1 0 0, sea 1; attribute (colour): 1 0 1 0; relation: 1 0 0 0
    expected = {"dpg": (7 / 16 + 1) / 2, "dpg_entity": 5 / 9, "dpg_attribute": 2 / 4, "dpg_relation": 1 / 4}
    assert found == pytest.approx(expected)
    note = meter.measure("dpg").note
    assert note == "1 pictures of other prompts; 1 prompts have more or fewer than 4 pictures"
    assert [item["path"] for item in meter.items()] == ["x"] * 5
    assert meter.items()[1]["said"] == {1: "no", 2: "Yes.", 3: "Yes.", 4: "Yes."}


def test_interval_limits_of_perfect_scores_are_one(geneval_file: str, dpg_file: str, tiny_clip: Path) -> None:
    """A perfect score is perfect in every resample, however uneven the pictures per task or per prompt are."""
    geneval: Any = GenEvalMeter(
        geneval_file, DogDetector(), ColoursByCLIP(pretrained.load("clip/transformers", tiny_clip))
    )
    geneval_pictures = [
        make_generated(f"{tag} of dog", 200) for tag in TASKS for _ in range(2 if tag == "counting" else 9)
    ]
    dpg: Any = DPGMeter(dpg_file, RecordedAnswerer())
    dpg_pictures = [make_generated("a red dog on grass", 0b1111)] * 11 + [make_generated("the sea", 0b10000)]
    for meter, pictures in ((geneval, geneval_pictures), (dpg, dpg_pictures)):
        meter.add(meter.process(pictures), list(range(len(pictures))))
    for metric in GENEVAL:
        score = score_of(geneval.measure(metric), frozenset())
        assert score.value == 1
        assert {score.low, score.high} <= {1, None}
    assert score_of(geneval.measure("geneval"), frozenset()).low == 1
    assert dpg.measure("dpg").items.values.tolist() == [1, 1]  # one item per prompt, whatever its number of pictures


def test_dpg_reports_answers_that_are_neither_yes_nor_no(dpg_file: str) -> None:
    class Rambling(RecordedAnswerer):
        def answer(self, picture: np.ndarray, question: str) -> str:
            return super().answer(picture, question) if picture[0, 0, 0] else "<think>"

    meter: Any = DPGMeter(dpg_file, Rambling())
    measure_all(meter, [make_generated("a red dog on grass", 0b1111), make_generated("a red dog on grass", 0)], [0, 0])
    assert "4 answers of 8 are neither yes nor no and count as no" in meter.measure("dpg").note
    meter = DPGMeter(dpg_file, Rambling())
    meter.add(meter.process([make_generated("the sea", 0)]), [0])
    with pytest.raises(ConfigError, match=r"not one answer is yes or no; .* says '<think>'"):
        meter.measure("dpg")


def test_clip_colour_is_that_of_the_nearest_mean_text_embedding(tiny_clip: Path) -> None:
    network = pretrained.load("clip/transformers", tiny_clip)
    crop = np.ascontiguousarray(data.coffee()[:48, :48])
    with torch.no_grad():
        cosines = []
        for colour in COLOURS:
            texts = [text.format(colour=colour, name="dog") for text in COLOUR_TEXTS]
            image_embeddings, text_embeddings = network.embed([crop], texts)
            mean = text_embeddings.mean(0)
            cosines.append((image_embeddings[0] @ mean / mean.norm()).item())
    found = ColoursByCLIP(network).colour(crop, "dog")  # the tiny vocabulary lacks most colours, so that some are equal
    assert cosines[COLOURS.index(found)] == pytest.approx(max(cosines))
    assert max(cosines) > min(cosines) + 1e-3


def test_command_line_scores_geneval_and_dpg(
    geneval_file: str,
    dpg_file: str,
    tiny_clip: Path,
    tiny_segmenter: Path,
    tiny_reader: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "drawn").mkdir()
    prompts = [*(str(line["prompt"]) for line in LINES), "a red dog on grass", "the sea"]
    for index, prompt in enumerate(prompts):
        metadata = PngInfo()
        metadata.add_text("imtok", json.dumps({"prompt": prompt}))
        crop = np.ascontiguousarray(data.coffee()[20 * index : 20 * index + 48, :48])
        Image.fromarray(crop).save(tmp_path / f"drawn/{index}.png", pnginfo=metadata)
    argv = ["evaluate-generated", str(tmp_path / "drawn"), "--out", str(tmp_path / "scores")]
    metric_arguments = ["--metrics", *GENEVAL, "dpg", "dpg_entity", "dpg_attribute"]
    file_arguments = ["--geneval", geneval_file, "--detector", str(tiny_segmenter), "--clip", str(tiny_clip)]
    file_arguments += ["--dpg", dpg_file, "--answerer", str(tiny_reader)]
    with pytest.raises(SystemExit, match="2"):
        main([*argv, *metric_arguments, *file_arguments])
    failed = json.loads((tmp_path / "scores/metrics.json").read_text())["failed"]
    assert "not one answer is yes or no" in failed["dpg"]  # the answerer's weights are random
    monkeypatch.setattr(
        VisionLanguageModel, "answer", lambda self, picture, question: "no" if "sea" in question else "Yes"
    )
    assert main([*argv, *metric_arguments, *file_arguments]) == 0
    found = json.loads((tmp_path / "scores/metrics.json").read_text())["metrics"]
    assert set(found) == {*GENEVAL, "dpg", "dpg_entity", "dpg_attribute"}
    assert found["geneval"]["count"] == len(LINES)
    assert found["dpg"]["network"] == "question_answerer/transformers"
    assert found["dpg"]["value"] == 0.5  # all questions are answered with yes for one prompt, with no for the other
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "scores/items.jsonl").read_text().splitlines()]
    assert (kinds.count("geneval"), kinds.count("dpg")) == (len(LINES), 2)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--metrics", "geneval", "dpg"])
    output = capsys.readouterr()
    assert "--geneval evaluation_metadata.jsonl" in output.out + output.err


def test_rejects_files_in_other_formats(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"prompt": "a dog"}\n')
    colours = ColoursByCLIP(pretrained.load("clip/transformers", tiny_clip))
    with pytest.raises(ConfigError, match="GenEval"):
        GenEvalMeter(str(tmp_path / "lines.jsonl"), DogDetector(), colours)
    (tmp_path / "rows.csv").write_text(QUESTIONS.replace(",text,", ",words,"))
    with pytest.raises(ConfigError, match="has no column text"):
        DPGMeter(str(tmp_path / "rows.csv"), RecordedAnswerer())
    (tmp_path / "rows.csv").write_text(QUESTIONS)
    rows = [row | {"text": 5} for _, row in read_table(str(tmp_path / "rows.csv"))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    DPGMeter(str(tmp_path / "rows.jsonl"), RecordedAnswerer())  # numeric prompts are unusual but accepted
