"""A generator end to end: encode, train, stop, resume, generate; with an untrained tokenizer."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

import imtok
from imtok import presets
from imtok.checkpoints import RunFolder, load_tensors
from imtok.cli import main
from imtok.config import ConfigError, from_dict, to_dict
from imtok.data.pictures import decode
from imtok.data.sample import DataError
from imtok.data.token_loader import TokenLoader, fixed_token_batches
from imtok.data.token_shards import Tokens, TokenShards, TokenWriter
from imtok.generators.catalog import copy_prompt_tokenizer, copy_prompt_tokenizer_from_run
from imtok.generators.far import FAR
from imtok.generators.generate import generate, read_prompts
from imtok.generators.sampling import SamplingConfig
from imtok.pretrained.language_model import LanguageModel
from imtok.tokenizers.encode import encode_pictures
from imtok.training.generator_task import GeneratorTask
from imtok.training.launch import train
from imtok.training.launch_generator import for_tokens
from imtok.training.run import GeneratorRunConfig, OptimizerConfig
from imtok.training.same_settings import check_same_model, check_same_run


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    codes = str(home / "codes")
    return train(presets.get_generator("far-debug"), codes, home / "far", validation=codes)


def test_run_learns_and_reports_nll_with_and_without_conditions(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "phase" in line}
    held_out = [line["validation/nll"] for line in lines if "validation/nll" in line]
    assert steps[1]["cross_entropy_0"] == pytest.approx(np.log(32), abs=1e-3)  # a fresh head predicts all codes equally
    assert steps[12]["cross_entropy_0"] < steps[1]["cross_entropy_0"]
    assert held_out[-1] < held_out[0] < np.log(32) + np.log(16)
    last = next(line for line in reversed(lines) if "validation/nll" in line)
    assert last["validation/nll_untold"] != last["validation/nll"]
    assert last["validation/nll_untold"] == pytest.approx(last["validation/nll"], rel=0.2)
    assert len(list((trained / "previews").glob("*.png"))) == 3


def test_each_picture_is_conditioned_on_its_class(home: Path) -> None:
    """The embedding of a class has a gradient if and only if a picture of the batch has that class."""
    shards = TokenShards(home / "codes")
    config = for_tokens(presets.get_generator("far-debug"), shards)
    generator = dataclasses.replace(config.generator, condition_dropout=0.0)  # pyright: ignore[reportCallIssue]
    task = GeneratorTask(dataclasses.replace(config, generator=generator)).train()
    model = task.generator
    assert isinstance(model, FAR)
    for parameter in model.head.parameters():  # a fresh head is zero and passes on no gradient
        torch.nn.init.normal_(parameter, std=0.1)
    (batch,) = fixed_token_batches(shards, count=2, batch_size=2)
    losses = task.losses(batch, "generator", 0)
    assert [task.weight(name) for name in losses] == [0.5, 0.5]  # a mean over the codebooks
    torch.stack(list(losses.values())).sum().backward()
    classes = {model.config.classes.index(label) for label in batch.labels if label}
    gradient = model.class_embedding.weight.grad
    assert gradient is not None
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == classes


def train_until_killed(
    home: Path, config: GeneratorRunConfig, out: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Start a run that is killed when it requests its batch number `at`."""
    requested = []

    def stop(self: TokenLoader, step: int, batch=TokenLoader.batch) -> object:
        requested.append(step)
        if len(requested) == at:
            raise RuntimeError("killed")
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(TokenLoader, "batch", stop)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, str(home / "codes"), out, validation=str(home / "codes"))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_resuming_is_bit_exact(
    home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["adamw", "muon"]
) -> None:
    config, codes = presets.get_generator("far-debug"), str(home / "codes")
    optimizer = dataclasses.replace(config.training.optimizer, algorithm=kind)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, optimizer=optimizer))
    straight = trained if kind == "adamw" else train(config, codes, home / "muon", validation=codes)
    train_until_killed(home, config, home / f"cut-{kind}", monkeypatch, at=6)
    cut = train(config, codes, home / f"cut-{kind}", validation=codes, resume=True)
    ours, theirs, others = (load_tensors(folder / "model.safetensors") for folder in (cut, straight, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(ours[name], others[name]) for name in others) == (kind == "adamw")


def test_moved_run_generates_pictures_in_python_and_by_command(
    home: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "moved"
    shutil.copytree(trained, elsewhere)
    pipeline = imtok.load_generator(str(elsewhere))
    label = pipeline.generator.config.classes[0]
    images = pipeline.generate([label, 1, None], seed=4, guidance_scale=1.5)
    assert images.shape == (3, 3, 64, 64)
    assert images.abs().max() <= 1
    for labels in ([1], 1, torch.tensor([1]), [np.int64(1)], pipeline.generator.config.classes[1]):
        for seeds in ([5], np.array([5]), torch.tensor([5])):
            again = pipeline.generate(labels, seeds=seeds, guidance_scale=1.5)
            assert torch.allclose(again[0], images[1], atol=1e-5)
    for seeds, message in (
        ([1, 2], "2 seeds for 1 pictures"),
        ([2**64], "at most 64 bits"),
        ([1.5], "seeds are whole numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline.generate([1], seeds=seeds)
    with pytest.raises(ConfigError, match="no class is called"):
        pipeline.generate("9" * 5000)
    flags = ["--labels", label, "1", "--count", "2", "--seed", "3", "--guidance-scale", "1.5", "--batch-size", "3"]
    assert main(["generate", str(elsewhere), "--out", str(tmp_path / "out"), *flags]) == 0
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 4
    with Image.open(files[1]) as picture:
        saved = json.loads(picture.info["imtok"])
    assert (saved["label"], saved["seed"], saved["guidance_scale"]) == (label, 4, [1.5])
    expected = decode(files[2].read_bytes()).astype(int)
    files[2].unlink()
    before = files[0].stat().st_mtime_ns
    assert main(["generate", str(elsewhere), "--out", str(tmp_path / "out"), *flags]) == 0
    assert np.abs(decode(files[2].read_bytes()) - expected).max() <= 1  # generated alone instead of in a batch of three
    assert files[0].stat().st_mtime_ns == before
    capsys.readouterr()
    for other_flags in (["--top-k", "3"], ["--precision", "bf16"]):
        assert main(["generate", str(elsewhere), "--out", str(tmp_path / "out"), *flags, *other_flags]) == 2
        assert "was made in another way" in capsys.readouterr().err
    in_bf16 = imtok.load_generator(str(elsewhere), dtype=torch.bfloat16)
    assert {weights.dtype for weights in in_bf16.generator.parameters()} == {torch.bfloat16}
    assert main(["generate", str(elsewhere), "--out", str(tmp_path / "rounded"), *flags, "--precision", "bf16"]) == 0
    assert len(list((tmp_path / "rounded").glob("*.png"))) == 4


def test_rejects_another_tokenizer_and_other_shard_formats(home: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    copy = RunFolder(tmp_path / "run" / "tokenizer")
    copy.write_model({name: tensor + 1 for name, tensor in copy.read_model().items()})
    with pytest.raises(ConfigError, match="was trained for another tokenizer than the tokenizer that is here"):
        imtok.load_generator(str(tmp_path / "run"))
    shutil.copytree(home / "codes", tmp_path / "codes")
    manifest = json.loads((tmp_path / "codes/manifest.json").read_text())
    (tmp_path / "codes/manifest.json").write_text(json.dumps(manifest | {"sha256": "0" * 64}))
    with pytest.raises(ConfigError, match=r"made by another .*dual than the one that is here by now"):
        train(presets.get_generator("far-debug"), str(tmp_path / "codes"), tmp_path / "other")
    for change in ({"fingerprint": None}, {"of the future": 1}):
        other = {name: value for name, value in (manifest | change).items() if value is not None}
        (tmp_path / "codes/manifest.json").write_text(json.dumps(other))
        with pytest.raises(DataError, match=r"codes: no token shards of this imtok's format"):
            train(presets.get_generator("far-debug"), str(tmp_path / "codes"), tmp_path / "other")


def test_rejects_invalid_requests_to_generate_and_train(home: Path, trained: Path, tmp_path: Path, capsys) -> None:
    for argv, message in (
        (["--labels", "no such class"], "no class is called 'no such class'"),
        (["--prompts", "a dog"], "is conditioned on labels, not on prompts"),
        ([], "give --labels"),
        (["--labels", "0", "--guidance-scale", "1", "2", "3"], "3 guidance scales for 2 codebooks"),
        (["--labels", "0", "--temperature", "-1"], "temperature = -1.0 must be 0 or more"),
    ):
        assert main(["generate", str(trained), "--out", str(tmp_path / "out"), *argv]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no labels are given"):
        imtok.load_generator(str(trained)).generate([])
    with pytest.raises(ConfigError, match="is a tokenizer's run"):
        imtok.load_generator(str(home / "dual"))
    with pytest.raises(ConfigError, match="no such run folder, and no generator that comes with imtok"):
        imtok.load_generator("nowhere")
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        imtok.load_tokenizer(str(trained))
    bad = presets.get_generator("far-debug")
    phase = dataclasses.replace(bad.training.phases[0], trains=("adapter",))
    bad = dataclasses.replace(bad, training=dataclasses.replace(bad.training, phases=(phase,)))
    with pytest.raises(ConfigError, match="trains 'adapter', which is no part of this model"):
        train(bad, str(home / "codes"), tmp_path / "bad")
    manifest = json.loads((home / "codes/manifest.json").read_text())
    shutil.copytree(home / "codes", tmp_path / "few")
    (tmp_path / "few/manifest.json").write_text(json.dumps(manifest | {"pictures": 30}))
    with pytest.raises(ConfigError, match="24 of 30 pictures are encoded"):
        train(presets.get_generator("far-debug"), str(tmp_path / "few"), tmp_path / "bad")


def test_init_from_copies_weights_and_rejects_incompatible_runs(home: Path, trained: Path, tmp_path: Path) -> None:
    config, codes = presets.get_generator("far-debug"), str(home / "codes")
    no_learning = dataclasses.replace(config.training, optimizer=OptimizerConfig(learning_rate=1e-30, weight_decay=0.0))
    run = train(dataclasses.replace(config, training=no_learning), codes, tmp_path / "run", init_from=str(trained))
    ours, theirs = (load_tensors(folder / "model.safetensors") for folder in (run, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rejected = {
        "generator": ({"classes": ["a", "b"], "num_classes": 2}, "knows the classes"),
        "tokenizer": ({"sha256": "0" * 64}, "writes for another tokenizer"),
        "generator ": ({"num_heads": 1}, r"has generator\.num_heads = 1, this run 2"),  # weights of the same shapes
    }
    for name, (changes, message) in rejected.items():
        other, section = RunFolder(tmp_path / name), name.strip()
        shutil.copytree(trained, other.path)
        values = other.read_config()
        other.write_config(values | {section: values[section] | changes})
        with pytest.raises(ConfigError, match=message):
            train(config, codes, tmp_path / "other", init_from=str(other.path))
    with pytest.raises(ConfigError, match="is of the kind far, this run's generator insightar"):
        train(presets.get_generator("insightar-debug"), codes, tmp_path / "other", init_from=str(trained))
    with pytest.raises(ConfigError, match="nowhere: no such run folder, and no generator that comes with imtok"):
        train(config, codes, tmp_path / "other", init_from="nowhere")


def test_existing_tokenizer_folder_is_not_deleted(home: Path, trained: Path, tmp_path: Path) -> None:
    config, codes = presets.get_generator("far-debug"), str(home / "codes")
    (tmp_path / "runs/tokenizer").mkdir(parents=True)
    (tmp_path / "runs/tokenizer/notes.txt").write_text("months of work")
    with pytest.raises(ConfigError, match="is in the way of the tokenizer's copy"):
        train(config, codes, tmp_path / "runs")
    assert (tmp_path / "runs/tokenizer/notes.txt").exists()
    shutil.rmtree(tmp_path / "runs/tokenizer")
    shutil.copytree(trained / "tokenizer", tmp_path / "runs/tokenizer")
    (tmp_path / "runs/tokenizer/resume").mkdir()  # the tokenizer's own run, which may be resumed later
    train(config, codes, tmp_path / "runs")
    assert (tmp_path / "runs/tokenizer/resume").is_dir()
    shutil.copytree(trained, tmp_path / "torn", ignore=shutil.ignore_patterns("tokenizer"))
    with pytest.raises(ConfigError, match="torn/tokenizer: is missing; the run's tokenizer belongs there"):
        imtok.load_generator(str(tmp_path / "torn"))


def test_sampling_settings_may_change_on_resume_and_are_validated(home: Path, trained: Path, tmp_path: Path) -> None:
    config, codes = presets.get_generator("far-debug"), str(home / "codes")
    other = dataclasses.replace(config, sampling=SamplingConfig(guidance_scale=(3.0,), top_p=0.5))
    shutil.copytree(trained, tmp_path / "run")
    train(other, codes, tmp_path / "run", validation=codes, resume=True)
    assert imtok.load_generator(str(tmp_path / "run")).sampling == other.sampling
    impossible = dataclasses.replace(config, sampling=SamplingConfig(guidance_scale=(1.0, 2.0, 3.0)))
    with pytest.raises(ConfigError, match="3 guidance scales for 2 codebooks"):
        train(impossible, codes, tmp_path / "never")
    assert not (tmp_path / "never/config.json").exists()


def test_rejects_other_resolution_or_unknown_class_before_first_step(home: Path, tmp_path: Path) -> None:
    config, codes = presets.get_generator("far-debug"), str(home / "codes")
    encode_pictures(str(home / "dual"), str(home / "signs"), tmp_path / "smaller", 32)
    with pytest.raises(ConfigError, match="of another tokenizer or resolution"):
        train(config, codes, tmp_path / "run", validation=str(tmp_path / "smaller"))
    classes = TokenShards(codes).labels()
    one_less = dataclasses.replace(config.generator, classes=tuple(classes[1:]), num_classes=len(classes) - 1)
    with pytest.raises(ConfigError, match=f"has the class '{classes[0]}', which the generator does not know"):
        train(dataclasses.replace(config, generator=one_less), codes, tmp_path / "run")


def test_run_resumes_after_its_tokenizer_was_deleted(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "dual", tmp_path / "dual")
    encode_pictures(str(tmp_path / "dual"), str(home / "signs"), tmp_path / "codes", 64)
    config = presets.get_generator("far-debug")
    training = dataclasses.replace(config.training, preview_every=0, evaluate_every=0)
    config = dataclasses.replace(config, training=training)
    run = train(config, str(tmp_path / "codes"), tmp_path / "run")
    shutil.rmtree(tmp_path / "dual")
    train(config, str(tmp_path / "codes"), run, resume=True)
    assert imtok.load_generator(str(run)).generate([0], seed=1).shape == (1, 3, 64, 64)


def language_model(folder: Path) -> str:
    """Write a tiny Llama with a word tokenizer, in the layout of a folder of the Hugging Face Hub."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "sign", "that", "says", "user"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}user {{ m['content'] }} </s>{% endfor %}"
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(words), num_attention_heads=2, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def test_language_model_trains_in_two_stages_and_resumes_bit_exactly(
    home: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = presets.get_generator("insightar-debug")
    changes = {"language_model": language_model(tmp_path / "lm"), "prompt_format": "chat", "max_prompt_tokens": 24}
    config = dataclasses.replace(config, generator=dataclasses.replace(config.generator, **changes))
    run = train(config, str(home / "codes"), tmp_path / "run", validation=str(home / "codes"))
    train_until_killed(home, config, tmp_path / "killed", monkeypatch, at=10)  # in the second stage
    first = dataclasses.replace(config.training, phases=config.training.phases[:1])  # trains adapter and head alone
    early = train(dataclasses.replace(config, training=first), str(home / "codes"), tmp_path / "early")
    kept = load_tensors(early / "model.safetensors")
    original = AutoModel.from_pretrained(tmp_path / "lm").state_dict()
    assert original
    assert all(torch.equal(kept[f"language_model.{name}"], tensor) for name, tensor in original.items())
    shutil.rmtree(tmp_path / "lm")  # it is needed only for the start
    train(config, str(home / "codes"), tmp_path / "killed", validation=str(home / "codes"), resume=True)
    ours, theirs = (load_tensors(folder / "model.safetensors") for folder in (tmp_path / "killed", run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "phase" in line}
    assert [steps[s]["phase"] for s in (4, 5)] == ["adapter-and-head", "all"]
    assert (steps[1]["learning_rate"], steps[5]["learning_rate"]) == (2e-3, 1e-3)  # the first step of each stage
    assert steps[12]["cross_entropy_0"] < steps[1]["cross_entropy_0"]
    two_steps = dataclasses.replace(config.training, steps=2)
    later = dataclasses.replace(config.generator, language_model="")
    later = train(
        dataclasses.replace(config, generator=later, training=two_steps),
        str(home / "codes"),
        tmp_path / "later",
        init_from=str(run),
    )
    saved = [RunFolder(folder).read_config()["generator"] for folder in (run, later)]
    assert saved[0] == saved[1]  # the language model's architecture too
    files = [
        {file.name: file.read_bytes() for file in (folder / "language_model").iterdir()} for folder in (run, later)
    ]
    assert files[0] == files[1] != {}
    shutil.copytree(run, tmp_path / "moved")
    pipeline = imtok.load_generator(str(tmp_path / "moved"))
    images = pipeline.generate(prompts=["a red sign", "a sign that says STOP"], seed=1)
    assert len(generate(str(run), tmp_path / "one", prompts="a red sign")) == 1
    assert images.shape == (2, 3, 64, 64)
    (tmp_path / "prompts.txt").write_text("a red sign\n\na sign that says STOP\n")
    argv = ["generate", str(tmp_path / "moved"), "--prompts", str(tmp_path / "prompts.txt"), "--seed", "1"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    argv = ["generate", str(tmp_path / "moved"), "--prompts", "red " * 200, "--out", str(tmp_path / "long")]
    assert main(argv) == 2
    assert "shorten it" in capsys.readouterr().err


@pytest.mark.slow
def test_smollm2_trains_in_both_stages(home: Path, tmp_path: Path, needs: Callable[[str], Any]) -> None:
    original = needs("language_model/smollm2").model.state_dict()
    config = presets.get_generator("insightar-smollm2")
    phases = tuple(dataclasses.replace(phase, steps=2) for phase in config.training.phases)
    training = dataclasses.replace(config.training, phases=phases, global_batch_size=2, micro_batch_size=None)
    run = train(dataclasses.replace(config, training=training), str(home / "codes"), tmp_path / "run")
    learned = load_tensors(run / "model.safetensors")
    changes = {name: (learned[f"language_model.{name}"] - tensor).abs().max() for name, tensor in original.items()}
    assert 0 < max(changes.values()) < 4 * 1e-4  # in two of the four steps, at the second stage's rate
    argv = ["generate", str(run), "--prompts", "a red sign that says OPEN", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    with Image.open(tmp_path / "out/00000.png") as picture:
        assert picture.size == (64, 64)


def test_copying_the_prompt_tokenizer_removes_files_of_a_failed_start(tmp_path: Path) -> None:
    """A chat template left by a failed start is removed, although the language model has none to overwrite it."""
    folders = [RunFolder(tmp_path / name) for name in ("first", "second")]
    for folder in folders:
        (folder.path / "language_model").mkdir(parents=True)
        (folder.path / "language_model/chat_template.jinja").write_text("of another")

    class Tokenizer:
        def save_pretrained(self, directory: Path) -> None:
            directory.mkdir(exist_ok=True)
            (directory / "tokenizer.json").write_text("{}")

    copy_prompt_tokenizer(LanguageModel(None, Tokenizer(), {}), folders[0])
    copy_prompt_tokenizer_from_run(folders[0], folders[1])
    for folder in folders:
        assert not (folder.path / "language_model/chat_template.jinja").exists()
    assert (folders[1].path / "language_model/tokenizer.json").exists()


def test_language_model_id_is_found_in_the_local_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--tiny"
    language_model(repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    code = "from imtok.pretrained.language_model import load_language_model as load; print(load('someone/tiny'))"
    command, environment = [sys.executable, "-c", code], os.environ | {"HF_HUB_CACHE": str(tmp_path)}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "'hidden_size': 32" in output


def test_existing_language_model_folder_is_not_deleted(home: Path, tmp_path: Path) -> None:
    folder = language_model(tmp_path / "models/language_model")
    config = presets.get_generator("insightar-debug")
    changes = {"language_model": folder, "prompt_format": "plain"}
    config = dataclasses.replace(config, generator=dataclasses.replace(config.generator, **changes))
    with pytest.raises(ConfigError, match="is in the way of the language model's tokenizer"):
        train(config, str(home / "codes"), tmp_path / "models")
    assert AutoModel.from_pretrained(folder).state_dict()


def test_insightar_trains_on_codes_of_a_llamagen_checkpoint(home: Path, tmp_path: Path) -> None:
    """The control LlamaGenTok-AR (InsightTok, Table 2): the same generator, here of bytes, on another project's .pt."""
    checkpoint = shutil.copy(Path(__file__).parents[1] / "tokenizers/reference/llamagen_tiny.pt", tmp_path)
    encode_pictures(str(checkpoint), str(home / "signs"), tmp_path / "codes", 32)
    base = presets.get_generator("insightar-debug")
    training = dataclasses.replace(base.training, steps=2, preview_every=0)
    run = train(dataclasses.replace(base, training=training), str(tmp_path / "codes"), tmp_path / "run")
    Path(checkpoint).unlink()  # the run folder has a copy
    pipeline = imtok.load_generator(str(run))
    manifest = TokenShards(tmp_path / "codes").manifest
    assert pipeline.generator.config.codebook_sizes == manifest.codebook_sizes
    vectors = pipeline.generator.get_buffer("codebook_0")
    codes = torch.arange(manifest.codebook_sizes[0])[None, :, None]
    assert torch.allclose(vectors, pipeline.tokenizer.lookup(codes)[0], atol=1e-6)
    assert pipeline.generate(prompts=["a red sign"], seed=1).shape == (1, 3, 32, 32)


def test_batches_depend_only_on_seed_and_step(home: Path) -> None:
    shards = TokenShards(home / "codes")
    whole = TokenLoader(shards, batch_size=6, seed=3)
    halves = [TokenLoader(shards, batch_size=6, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 7):
        batch, parts = whole.batch(step), [half.batch(step) for half in halves]
        assert torch.equal(batch.tokens, torch.cat([part.tokens for part in parts]))
        assert batch.labels == parts[0].labels + parts[1].labels
    epoch = [path for step in range(4) for path in whole.batch(step).paths]
    assert len(set(epoch)) == 24
    assert not torch.equal(whole.batch(0).tokens, TokenLoader(shards, batch_size=6, seed=4).batch(0).tokens)


def test_fixed_batches_replace_pictures_without_crops_by_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, read = TokenShards(home / "codes"), TokenShards.__getitem__

    def without_every_sixth(self: TokenShards, index: int) -> Tokens:
        picture = read(self, index)
        return dataclasses.replace(picture, values=picture.values[: index % 6])

    monkeypatch.setattr(TokenShards, "__getitem__", without_every_sixth)
    (batch,) = fixed_token_batches(shards, count=4, batch_size=8)
    assert batch.paths == [shards[row].path for row in (1, 7, 13, 19)]


def test_prompts_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "marked.txt").write_bytes("\ufeffa red sign\n\n  \nthe sea\n".encode())
    assert read_prompts([str(tmp_path / "marked.txt")]) == ["a red sign", "the sea"]
    (tmp_path / "TABLE.JSONL").write_text('{"image": "a.png", "caption": "a dog"}\n{"prompt": "a cat"}\n')
    assert read_prompts([str(tmp_path / "TABLE.JSONL")]) == ["a dog", "a cat"]
    (tmp_path / "half.jsonl").write_text('{"prompt": "half a \\ud83d pair"}\n')
    assert read_prompts([str(tmp_path / "half.jsonl")]) == ["half a \\ud83d pair"]
    assert read_prompts(["what prompts.txt says", "b.text"]) == ["what prompts.txt says", "b.text"]
    with pytest.raises(DataError, match=r"half.jsonl: one file of prompts, or prompts themselves"):
        read_prompts([str(tmp_path / "half.jsonl"), "a red sign"])
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "words.csv").write_text("text\nOPEN\n")
    (tmp_path / "blank.txt").write_text("\n")
    for name, message in (
        ("latin.txt", "not UTF-8"),
        ("gone.txt", "gone.txt: no such file"),
        ("words.csv", "no row has a prompt or a caption"),
        ("blank.txt", "is empty"),
    ):
        with pytest.raises(DataError, match=message):
            read_prompts([str(tmp_path / name)])


def changed(config: Any, name: str, value: object) -> Any:
    """Return the config with another value of one setting, given as in its JSON."""
    values = to_dict(config)
    *path, last = name.split(".")
    section = values
    for key in path:
        section = section[key]
    assert section[last] != value
    section[last] = value
    return from_dict(type(config), values)


MAY_CHANGE = {
    "training.micro_batch_size": 1,
    "training.channels_last": True,
    "training.gradient_checkpointing": True,
    "training.compile": True,
    "training.shard_weights": True,
    "training.threads": 3,
    "training.log_every": 7,
    "training.save_every": 7,
    "training.preview_every": 7,
    "training.evaluate_every": 7,
    "training.evaluation_pictures": 7,
    "training.logger": "tensorboard",
    "training.watchdog.patience": 7,
    "sampling.top_k": 7,
}
MUST_STAY = {
    "training.precision": "fp32",
    "training.global_batch_size": 7,
    "training.seed": 7,
    "training.max_grad_norm": 7.0,
    "training.optimizer.learning_rate": 7.0,
    "generator.dropout": 0.7,
    "generator.condition_dropout": 0.7,
}


def test_resume_allows_only_changes_that_do_not_affect_results(tmp_path: Path) -> None:
    config, folder = presets.get_generator("far-debug"), RunFolder(tmp_path)
    for name, value in MAY_CHANGE.items():
        check_same_run(changed(config, name, value), config, folder)
    for name, value in MUST_STAY.items():
        with pytest.raises(ConfigError, match=f"was started with {name} = "):
            check_same_run(changed(config, name, value), config, folder)


def test_init_from_allows_other_training_only_settings() -> None:
    far = presets.get_generator("far-debug").generator
    insightar = presets.get_generator("insightar-debug").generator
    ema, trained = (presets.get(name).tokenizer for name in ("insighttok-debug", "fqgan-debug"))
    for config, name, value in (
        (far, "dropout", 0.7),
        (far, "condition_dropout", 0.7),
        (insightar, "condition_dropout", 0.7),
        (ema, "quantizer.decay", 0.7),
        (ema, "quantizer.restart_threshold", 0.7),
        (trained, "quantizer.entropy_temperature", 0.7),
    ):
        section = "generator" if config in (far, insightar) else "tokenizer"
        ours, theirs = ({section: to_dict(one)} for one in (changed(config, name, value), config))
        check_same_model(ours, theirs, "run")
    with pytest.raises(ConfigError, match=r"--init-from run: has generator\.head_depth = 1, this run 7"):
        check_same_model({"generator": to_dict(changed(far, "head_depth", 7))}, {"generator": to_dict(far)}, "run")


def copy_shards(shards: Path, out: Path, **changes: object) -> str:
    """Write a copy of token shards with some fields of every picture replaced."""
    source = TokenShards(shards)
    writer = TokenWriter(out, source.manifest)
    writer.write([dataclasses.replace(source[index], **changes) for index in range(len(source))])  # pyright: ignore[reportArgumentType]
    return str(out)


def test_rejects_unusable_shards_and_models_before_the_first_step(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, far = str(home / "codes"), presets.get_generator("far-debug")
    insightar = presets.get_generator("insightar-debug")
    unlabelled = copy_shards(home / "codes", tmp_path / "unlabelled", label=None)
    uncaptioned = copy_shards(home / "codes", tmp_path / "silent", captions=())
    for config, data, message in (
        (far, unlabelled, "unlabelled: none of its pictures has a class to be generated by"),
        (insightar, uncaptioned, "silent: none of its pictures has a caption to be generated by"),
        (presets.get_generator("dit-debug"), codes, "holds codes; this generator wants latents of a continuous"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config, data, tmp_path / "run")
    wrong_model = dataclasses.replace(insightar.generator, language_model="language_model/smollm2")  # pyright: ignore[reportCallIssue]
    monkeypatch.setattr("imtok.pretrained.load", lambda name: object())
    with pytest.raises(ConfigError, match="is no language model; imtok weights lists them"):
        train(dataclasses.replace(insightar, generator=wrong_model), codes, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr("imtok.training.launch.mean_over_ranks", lambda tensors: tensors[0].fill_(0.5))
    with pytest.raises(ConfigError, match="only some of the processes see this run"):
        train(far, codes, tmp_path / "run")


def test_generate_rejects_a_folder_with_pictures_of_other_weights(trained: Path, tmp_path: Path, capsys) -> None:
    for name in ("run", "copied"):
        shutil.copytree(trained, tmp_path / name)
    flags = ["--labels", "0", "--out", str(tmp_path / "out")]
    assert main(["generate", str(tmp_path / "run"), *flags]) == 0
    before = (tmp_path / "out/00000.png").stat().st_mtime_ns
    assert main(["generate", str(tmp_path / "copied"), *flags]) == 0  # wherever the run is stored
    assert (tmp_path / "out/00000.png").stat().st_mtime_ns == before
    folder = RunFolder(tmp_path / "run")
    folder.write_model({name: tensor * 1.5 for name, tensor in folder.read_model().items()})
    assert main(["generate", str(tmp_path / "run"), *flags]) == 2
    assert "was made in another way" in capsys.readouterr().err


def test_generate_rejects_several_processes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate", str(trained), "--labels", "0", "--out", str(tmp_path / "out")]) == 2
    assert "out: several processes would write the same files; call it once" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
