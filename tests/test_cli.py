import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imtok
from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.cli import VERBS, main
from imtok.config import to_dict
from imtok.doctor import report
from imtok.evaluation.evaluate import METRICS
from imtok.tokenizers.text import TextConditioner
from imtok.training.trainer import TrainingStopped


def test_help_does_not_import_torch() -> None:
    code = "import sys, imtok.cli; imtok.cli.main(['--help']); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [verb, "insighttok-debug", "--help"] if verb == "train" else [verb, "--help"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert f"usage: imtok {verb}" in capsys.readouterr().out


def test_usage_names_positional_arguments_and_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, usage in (("annotate", "[OPTIONS] SRC OUT"), ("pack", "PICTURES OUT.npz"), ("presets", "[NAME]")):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert usage in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"imtok {imtok.__version__}\n"


def test_broken_pipe_exits_silently_with_code_141() -> None:
    code = "import sys; from imtok.cli import main; sys.exit(main(['annotate', '--help']))"
    end, pipe = os.pipe()
    os.close(end)
    done = subprocess.run([sys.executable, "-uc", code], stdout=pipe, stderr=subprocess.PIPE, text=True)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_evaluate_help_lists_arguments_flags_and_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "TOKENIZER [TOKENIZER ...]" in words
    assert "--no-checks leave out" in words
    assert "--no-cache neither" in words
    assert f"only these of: {', '.join(METRICS)}" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "no verb is called 'paint'; there are demo"),
        (["annotat"], "no verb is called 'annotat'; did you mean annotate?"),
        (["presets", "insighttok-nan"], "did you mean insighttok-nano"),
        (["weights", "fetch", "text_encoder/minlm"], "did you mean text_encoder/minilm"),
        (["annotate", "", "OUT"], "an empty name is no file or folder"),
        (["annotate", "PICTURE", "OUT"], "picture.png: expected a folder"),
        (["annotate", "FOLDER", "PICTURE"], "picture.png: File exists"),
        (["annotate", "FOLDER", "foo://x"], "foo://x/progress.json: cannot be opened"),
        (["annotate", "FOLDER", "OUT", "--min-text-score", "nan"], "must be in [0, 1]"),
        (["annotate", "FOLDER", "OUT", "--samples-per-shard", "0"], "samples_per_shard = 0"),
        (["synthesize", "OUT", "--seed", "-1"], "count, seed and size"),
        (["synthesize", "OUT", "--word-height", "24", "inf"], "word height 24 to inf"),
        (["demo", "--signs", "-5"], "signs = -5 must be at least 1"),
        (["weights", "fetch", "hf://a b/c d/x"], "hf://a b/c d/x: no address of the hub"),
        (["train"], "which preset?"),
        (["train", "insighttok-mega", "--data", "x", "--out", "y"], "no preset is called 'insighttok-mega'"),
        (["train", "insighttok-debug", "--data", "absent", "--out", "OUT"], "absent"),
        (["reconstruct", "absent", "PICTURE", "--out", "OUT"], "absent: no such run folder or checkpoint file"),
        (["presets", "nothing"], "no preset is called 'nothing'"),
        (["weights", "fetch", "role/nothing"], "role/nothing: no such network"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    places = {"OUT": str(tmp_path / "out"), "FOLDER": str(tmp_path), "PICTURE": str(tmp_path / "picture.png")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


FLAGS = {
    "imtok.training.launch.train": (
        "train insighttok-debug --data a --out b --validation c --resume --init-from d",
        {"data": "a", "out": Path("b"), "validation": "c", "resume": True, "init_from": "d"},
    ),
    "imtok.tokenizers.encode.encode_pictures": (
        "encode a b c --resolution 64 --crops ten --batch-size 5",
        {"tokenizer": "a", "source": "b", "out": "c", "resolution": 64, "crops": "ten", "batch_size": 5},
    ),
    "imtok.evaluation.reconstruct.reconstruct": (
        "reconstruct a b c --out d --branches --captions e",
        {"tokenizer": "a", "images": (Path("b"), Path("c")), "out": Path("d"), "branches": True, "captions": "e"},
    ),
    "imtok.generators.generate.generate": (
        (
            "generate a --out b --labels c d --count 2 --seed 3 --batch-size 4 --guidance-scale 5 6 "
            "--guidance-schedule cosine --temperature .7 --top-k 8 --top-p .9 --num-inference-steps 10 "
            "--spacing leading --guidance-power 1.1 --precision bf16"
        ),
        {
            "run": "a",
            "out": Path("b"),
            "labels": ("c", "d"),
            "prompts": None,
            "count": 2,
            "seed": 3,
            "batch_size": 4,
            "precision": "bf16",
            "guidance_scale": (5.0, 6.0),
            "guidance_schedule": "cosine",
            "temperature": 0.7,
            "top_k": 8,
            "top_p": 0.9,
            "num_inference_steps": 10,
            "spacing": "leading",
            "guidance_power": 1.1,
        },
    ),
    "imtok.evaluation.evaluate.evaluate": (
        (
            "evaluate a b --data c --out d --metrics psnr --size 256 --fit crop --count 7 --no-checks "
            "--wrong-captions --text-judge e --face-judge f --face-buckets first --no-cache --protocol g"
        ),
        {
            "tokenizers": ("a", "b"),
            "data": ("c",),
            "out": Path("d"),
            "metrics": ("psnr",),
            "size": 256,
            "fit": "crop",
            "count": 7,
            "checks": False,
            "wrong_captions": True,
            "text_judge": "e",
            "face_judge": "f",
            "face_buckets": "first",
            "cache": False,
            "protocol": "g",
        },
    ),
    "imtok.evaluation.generated.evaluate_generated": (
        (
            "evaluate-generated a --out b --reference c --metrics fid --size 64 --count 5 --prompts d --words e "
            "--clip f --text-judge g --geneval h --detector i --dpg j --answerer k --protocol l"
        ),
        {
            "pictures": "a",
            "out": Path("b"),
            "reference": "c",
            "metrics": ("fid",),
            "size": 64,
            "count": 5,
            "prompts": "d",
            "words": "e",
            "clip": Path("f"),
            "text_judge": "g",
            "geneval": "h",
            "detector": "i",
            "dpg": "j",
            "answerer": "k",
            "protocol": "l",
        },
    ),
}
"""For the function behind each verb: a command with all flags, and the arguments that the function must receive."""


@pytest.mark.parametrize("place", FLAGS)
def test_every_flag_is_passed_to_its_parameter(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = place.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    command, expected = FLAGS[place]
    received: dict[str, Any] = {}

    class Called(Exception):
        pass

    def record_call(*args: Any, **kwargs: Any) -> None:
        received.update(inspect.signature(function).bind(*args, **kwargs).arguments)
        raise Called

    monkeypatch.setattr(place, record_call)
    with pytest.raises(Called):
        main(command.split())
    received |= received.pop("sampling", {})
    received.pop("config", None)
    assert received == expected


def test_stopped_training_exits_with_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise TrainingStopped("step 5: l1 is nan")

    monkeypatch.setattr("imtok.training.launch.train", stop)
    with pytest.raises(SystemExit) as ended:
        main(["train", "insighttok-debug", "--data", "x", "--out", "y"])
    assert ended.value.code == 3
    assert capsys.readouterr().err == "imtok train: step 5: l1 is nan\n"


def test_out_of_memory_error_suggests_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nand more")

    monkeypatch.setattr("imtok.training.launch.train", run_out_of_memory)
    assert main(["train", "insighttok-debug", "--data", "x", "--out", "y"]) == 2
    stderr = capsys.readouterr().err
    assert "9 GiB.; a smaller --training.micro-batch-size" in stderr
    assert stderr.count("\n") == 1
    monkeypatch.setattr("imtok.generators.generate.generate", run_out_of_memory)
    assert main(["generate", "dit-nano", "--labels", "animal", "--out", "y"]) == 2
    assert "9 GiB.; fewer or smaller pictures at a time" in (stderr := capsys.readouterr().err)
    assert stderr.count("\n") == 1


def test_train_help_without_a_preset_lists_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert "insighttok-small" in capsys.readouterr().out


def test_reconstruct_does_not_overwrite_the_originals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    before = (tmp_path / "picture.png").read_bytes()
    checkpoint = Path(__file__).parent / "tokenizers/reference/insighttok_tiny.pt"
    assert main(["reconstruct", str(checkpoint), str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert (tmp_path / "picture.png").read_bytes() == before


def test_reconstruct_shows_each_branch_separately(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 24), (200, 30, 30)).save(tmp_path / "picture.png")
    run = RunFolder(tmp_path / "run")
    run.write_config(to_dict(presets.get("fqgan-debug")))
    run.write_model(presets.create_tokenizer("fqgan-debug").weights())
    arguments = [str(tmp_path / "picture.png"), "--out", str(tmp_path / "out"), "--branches"]
    assert main(["reconstruct", str(run.path), *arguments]) == 0
    with Image.open(tmp_path / "out_side_by_side/picture.png") as row:
        assert row.size == (4 * 40, 24)  # original, reconstruction, two branches
        views = [np.asarray(row)[:, 40 * i : 40 * (i + 1)] for i in (1, 2, 3)]
    assert not any((a == b).all() for a, b in combinations(views, 2))
    checkpoint = str(Path(__file__).parent / "tokenizers/reference/insighttok_tiny.pt")
    assert main(["reconstruct", checkpoint, *arguments]) == 2
    assert "has no branches to show" in capsys.readouterr().err


def test_reconstruct_matches_captions_by_paths_relative_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = presets.get("textok-debug")
    run = RunFolder(tmp_path / "run")
    run.write_config(to_dict(config))
    run.write_model(presets.create_tokenizer("textok-debug").weights())
    (tmp_path / "set/sub").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"set/sub/{name}.png")
    texts_read = []
    monkeypatch.setattr(TextConditioner, "encode", lambda self, texts: texts_read.append(texts) or None)
    (tmp_path / "set/c.jsonl").write_text('{"image": "sub/a.png", "caption": "a dog"}\n')
    arguments = ["reconstruct", str(run.path), str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--captions"]
    assert main([*arguments, str(tmp_path / "set/c.jsonl")]) == 0
    assert texts_read == [["a dog"], [None]]
    rows = ('{"image": "a.png", "caption": "a cat"}', '{"image": "sub/a.png", "caption": "a dog"}')
    (tmp_path / "set/C.JSONL").write_text("\n".join(rows))
    texts_read.clear()
    assert main([*arguments, str(tmp_path / "set/C.JSONL")]) == 0
    assert texts_read == [["a dog"], [None]]
    (tmp_path / "set/c.txt").write_text("a dog")
    assert main([*arguments, str(tmp_path / "set/c.txt")]) == 2
    assert "c.txt: captions of pictures are listed in a .jsonl or .csv" in capsys.readouterr().err
    (tmp_path / "set/c.jsonl").write_text('{"image": "other/a.jpg", "caption": "a dog"}\n')
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "set/c.jsonl")]) == 2
    assert "has captions of none of the 2 pictures" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_verb_with_one_line_and_exit_code_130(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned_up, before = [], signal.getsignal(number)

    def work(argv: object) -> None:
        try:
            if number == signal.SIGINT:  # what Python's handler raises; a test process may have another handler
                raise KeyboardInterrupt
            signal.raise_signal(number)
        finally:
            cleaned_up.append("what was found")

    monkeypatch.setitem(VERBS, "doctor", work)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "imtok doctor: stopped\n"
    assert cleaned_up
    assert signal.getsignal(number) == before


def test_presets_prints_one_resolved_config_or_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "insighttok"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["global_batch_size"] == 512
    assert main(["presets"]) == 0
    families = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")]
    assert ["InsightTok" in families[0][0], "FQGAN" in families[1][0]] == [True, True]
    listed = dict(line.strip().split("  ", 1) for family in families for line in family[1:])
    assert {name: summary.strip() for name, summary in listed.items()} == presets.names()


def test_doctor_lists_missing_packages_of_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("transformers", "gguf"):
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr("imtok.doctor.version", version)
    lines = report().splitlines()
    assert "[networks]  lacks gguf, transformers: pip install imtok[networks]" in lines
    assert "[fonts]     complete" in lines


def test_doctor_reports_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_reconstruct_writes_pictures_at_their_own_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("wide.png", (70, 33)), ("tall.jpg", (31, 65))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    checkpoint = Path(__file__).parent / "tokenizers/reference/insighttok_tiny.pt"
    assert main(["reconstruct", str(checkpoint), str(folder / "broken.jpg"), "--out", str(tmp_path / "none")]) == 2
    assert main(["reconstruct", str(checkpoint), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "2 pictures in" in capsys.readouterr().out
    for name, size in (("wide", (70, 33)), ("tall", (31, 65)), ("../out_side_by_side/wide", (140, 33))):
        with Image.open(tmp_path / f"out/{name}.png") as written:
            assert written.size == size
    assert not (tmp_path / "out/broken.png").exists()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png"}  # and no folder
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/to").symlink_to(folder, target_is_directory=True)
    assert main(["reconstruct", str(checkpoint), str(tmp_path / "linked"), "--out", str(tmp_path / "linked out")]) == 0
    assert len(list((tmp_path / "linked out").iterdir())) == 2
    weights = torch.load(checkpoint, weights_only=True)["model"]
    torch.save({"model": {name: tensor * torch.nan for name, tensor in weights.items()}}, tmp_path / "nan.pt")
    assert main(["reconstruct", str(tmp_path / "nan.pt"), str(folder), "--out", str(tmp_path / "nan")]) == 2
    assert "outputs NaN or infinity; its weights are broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampling.num-inference-steps", "0"], "sampling: num_inference_steps = 0 must be 1 to 1000"),
        (["--generator.classes", "a", "b"], "dit: 2 classes are named, num_classes is 12"),
        (["--training.optimizer.learning-rate", "nan"], "optimizer: learning_rate = nan must be finite"),
    ],
)
def test_invalid_train_settings_give_one_line_errors(flags: list[str], message: str, capsys) -> None:
    assert main(["train", "dit-nano", "--data", "x", "--out", "y", *flags]) == 2
    assert capsys.readouterr().err == f"imtok train: {message}\n"
