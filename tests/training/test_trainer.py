"""The training loop on rendered signs: phases, averaged weights, resuming, stopping, initializing from other runs."""

import copy
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imtok import presets, pretrained
from imtok.checkpoints import RunFolder
from imtok.cli import main
from imtok.config import ConfigError, from_dict, to_dict
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError, InMemoryDataset, Sample
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import synthesize
from imtok.data.text_features import embed
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.teachers import UNKNOWN, teachers_of_weights
from imtok.losses.discriminators import PatchDiscriminatorConfig
from imtok.pretrained import MissingWeights
from imtok.tokenizers import VQGAN, load
from imtok.tokenizers.text import TextConditioner
from imtok.training import launch, tasks, trainer
from imtok.training.launch import train
from imtok.training.log import TrainingLog
from imtok.training.run import LossConfig, OptimizerConfig, Phase, RunConfig, TrainingConfig, WatchdogConfig
from imtok.training.trainer import Trainer, TrainingStopped
from imtok.training.validation import Validation


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("signs")
    synthesize(str(folder / "shards"), count=24, size=64, word_height=(12.0, 24.0))
    return str(folder / "shards")


def small_run(preset: str = "insighttok-debug", **training: object) -> RunConfig:
    """Return a debug run without third-party networks, as the tests here do not depend on them."""
    base = presets.get(preset)
    phases = tuple(dataclasses.replace(phase, weights={}, region_share=None) for phase in base.training.phases)
    settings = {"phases": phases, "precision": "fp32", **training}
    return dataclasses.replace(base, training=dataclasses.replace(base.training, **settings))


def test_debug_preset_trains_every_phase_with_text_and_face_losses(signs: str, tmp_path: Path, needs) -> None:
    needs("text_features/ppocrv6")
    needs("face_features/mobilefacenet")
    config = presets.get("insighttok-debug")
    out = train(config, signs, tmp_path / "run", validation=signs)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "phase" in line}
    assert [steps[s]["phase"] for s in (1, 3, 7, 12)] == ["warm-up", "pretrain", "text-and-face", "decoder"]
    assert "text" not in steps[6]
    assert steps[7]["text"] > 0
    assert "adversarial" not in steps[3]
    assert "discriminator" in steps[4]
    assert any("validation/psnr" in line for line in lines)
    assert len(list((out / "previews").glob("*.png"))) >= 3
    assert from_dict(RunConfig, json.loads((out / "config.json").read_text())) == config
    assert isinstance(load(str(out)), VQGAN)


def test_tokenizer_is_conditioned_on_captions_in_training_and_after(
    signs: str,
    tmp_path: Path,
    needs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = needs("text_encoder/minilm")
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for sample in open_dataset(signs):
            writer.write(sample)
    shards = str(tmp_path / "shards")
    embed(shards, "text_encoder/minilm", max_tokens=48)
    monkeypatch.setattr(pretrained, "load", lambda name: pytest.fail(f"{name}: everything is stored"))
    config = presets.get("textok-debug")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, drop_captions=0.0))
    run = train(config, shards, tmp_path / "run", validation=shards)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "r1" in line] == [1, 5, 9]  # steps 0, 4 and 8, counted from 0
    assert any("validation/psnr" in line for line in lines)
    text_config = load(str(run)).text_config
    assert text_config is not None
    assert text_config.sha256 == encoder.sha256
    with_captions = evaluate(str(run), shards, metrics=["psnr", "bits_per_pixel", "caption_bits"], checks=False)
    uncaptioned = {
        "shards": InMemoryDataset(dataclasses.replace(sample, captions=[]) for sample in open_dataset(shards))
    }
    without_captions = evaluate(str(run), uncaptioned, metrics=["psnr", "caption_bits"], checks=False)
    assert with_captions.score("run", "shards", "psnr").value != without_captions.score("run", "shards", "psnr").value
    assert with_captions.score("run", "shards", "bits_per_pixel").value == pytest.approx(4 * 8 * 32 / 64**2)
    sizes = [len(sample.captions[0].encode()) for sample in open_dataset(shards)]
    assert with_captions.score("run", "shards", "caption_bits").value == pytest.approx(8 * sum(sizes) / len(sizes))
    assert without_captions.score("run", "shards", "caption_bits").value == 0
    monkeypatch.undo()
    picture = tmp_path / "sign.png"
    picture.write_bytes(open_dataset(shards)[0].image)
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "sign.png", "caption": "a red sign"}) + "\n")
    reconstructions = {}
    for name, flags in {
        "long": ["--captions", "a red sign " * 40],
        "told": ["--captions", "a red sign"],
        "table": ["--captions", str(tmp_path / "captions.jsonl")],
        "other": ["--captions", "a dog"],
        "without": [],
    }.items():
        assert main(["reconstruct", str(run), str(picture), "--out", str(tmp_path / name), *flags]) == 0
        assert ("of which the model reads 48" in caplog.text) == (name == "long")
        caplog.clear()
        reconstructions[name] = (tmp_path / name / "sign.png").read_bytes()
    assert reconstructions["told"] == reconstructions["table"]
    assert len(set(reconstructions.values())) == 4
    assert (
        main(["reconstruct", "vqgan-nano", str(picture), "--out", str(tmp_path / "none"), "--captions", "a dog"]) == 2
    )
    assert "vqgan-nano: is not conditioned on captions" in capsys.readouterr().err
    assert main(["reconstruct", str(run), str(picture), "--out", str(tmp_path / "no"), "--captions", "typo.csv"]) == 2
    assert "typo.csv" in capsys.readouterr().err


def test_resume_keeps_the_text_encoder_weights_of_the_start(
    signs: str, tmp_path: Path, needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other encoder weights have been installed, and features by them stored, since the start."""
    encoder = needs("text_encoder/minilm")
    shards = shutil.copytree(signs, tmp_path / "shards")
    embed(str(shards), "text_encoder/minilm", max_tokens=48)
    run = train(presets.get("textok-debug"), str(shards), tmp_path / "run")
    other = copy.deepcopy(encoder)
    other.sha256 = "of others"
    monkeypatch.setattr(pretrained, "load", lambda name: other)
    embed(str(shards), "text_encoder/minilm", max_tokens=48)
    assert train(presets.get("textok-debug"), str(shards), run, resume=True) == run
    saved = RunFolder(run).read_config()["tokenizer"]["text"]["sha256"]
    assert saved == encoder.sha256


def test_rejects_conditioning_on_text_that_no_picture_has(signs: str, tmp_path: Path) -> None:
    config = presets.get("textok-debug")
    for removed, message in (
        (
            {"captions": []},
            "the tokenizer is conditioned on captions, and no picture has one; imtok annotate --captions",
        ),
        ({"label": None}, "the tokenizer is conditioned on classes, and no picture has one"),
    ):
        with ShardWriter(str(tmp_path / min(removed))) as writer:
            for sample in open_dataset(signs):
                writer.write(dataclasses.replace(sample, **removed))
        with pytest.raises(ConfigError, match=message):
            train(config, str(tmp_path / min(removed)), tmp_path / "run")
        text = dataclasses.replace(config.tokenizer.text, template="a {label}")
        config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, text=text))
    assert not (tmp_path / "run").exists()


def test_initial_weights_depend_only_on_the_seed(signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the captions' features are stored, a text encoder is loaded first, and building it uses random numbers."""
    initial: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(Trainer, "run", lambda trainer, resume: initial.append(trainer.task.state_dict()))
    for numbers in (0, 5):
        monkeypatch.setattr(TextConditioner, "prepare", lambda text_conditioner, count=numbers: torch.rand(count))
        train(small_run("textok-debug"), signs, tmp_path / str(numbers))
    assert [name for name in initial[0] if not torch.equal(initial[0][name], initial[1][name])] == []


def test_rejects_a_discriminator_of_another_resolution(signs: str, tmp_path: Path, needs) -> None:
    needs("text_encoder/minilm")
    config = presets.get("textok-debug")
    crop = dataclasses.replace(config.data.crop, resolution=32)
    with pytest.raises(ConfigError, match="made for 64 px, the pictures have 32"):
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, crop=crop)), signs, tmp_path / "run")


def test_rejects_pictures_too_small_for_the_discriminator(signs: str, tmp_path: Path) -> None:
    config = small_run()
    discriminator = PatchDiscriminatorConfig(base_channels=16, num_layers=5)
    with pytest.raises(ConfigError, match="judges pictures of 96 px or more, these have 64"):
        train(dataclasses.replace(config, discriminator=discriminator), signs, tmp_path / "run")


def test_rejects_a_resolution_the_downsampling_factor_does_not_divide(signs: str, tmp_path: Path) -> None:
    config = small_run()
    crop = dataclasses.replace(config.data.crop, resolution=60)
    with pytest.raises(ConfigError, match=r"resolution: 60 px is no multiple of the tokenizer's 8"):
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, crop=crop)), signs, tmp_path / "run")


def test_training_lowers_the_loss(signs: str, tmp_path: Path) -> None:
    phases = (Phase(name="all", steps=60, quantize=False, weights={"adversarial": 0.0}),)
    config = small_run(phases=phases, log_every=20, preview_every=0)
    out = train(config, signs, tmp_path / "run")
    losses = [json.loads(line)["l1"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_decoder_phase_leaves_encoder_and_codebook_alone(signs: str, tmp_path: Path, ema_decay: float | None) -> None:
    settings = {"save_every": 3, "ema_decay": ema_decay}
    phases = (Phase(name="all", steps=3), Phase(name="decoder", steps=3, trains=("decoder",)))
    first = small_run(phases=phases[:1], **settings)
    both = small_run(phases=phases, **settings)
    before = load_file(train(first, signs, tmp_path / "first") / "model.safetensors")
    after = load_file(train(both, signs, tmp_path / "both") / "model.safetensors")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def test_saved_and_evaluated_weights_are_the_averaged_ones(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seen = "decoder.conv_in.weight", []

    def evaluate(_: Validation, model: VQGAN, device: torch.device) -> dict[str, float]:
        seen.append(model.weights()[name].clone())
        return {}

    monkeypatch.setattr(Validation, "evaluate", evaluate)
    out = train(small_run(ema_decay=0.9), signs, tmp_path / "run", validation=signs)
    state = load_file(next((out / "resume").glob("step-*")) / "state.safetensors")
    saved = load_file(out / "model.safetensors")
    assert torch.equal(saved[name], seen[-1])
    assert torch.equal(saved[name], state[f"module.average.module.{name}"])
    assert not torch.equal(saved[name], state[f"module.task.tokenizer.{name}"])


def test_two_micro_batches_equal_one_batch(signs: str, tmp_path: Path) -> None:
    phases = (Phase(name="all", steps=2),)
    numbers = []
    for name, size in (("whole", None), ("halves", 2)):
        out = train(small_run(phases=phases, micro_batch_size=size), signs, tmp_path / name)
        numbers.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0]))
    for name in ("l1", "commitment", "grad_norm_tokenizer", "codebook_used"):
        assert numbers[0][name] == pytest.approx(numbers[1][name], rel=1e-4), name


def logged_lines(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def run_command(config: RunConfig, signs: str, out: Path, *flags: str) -> list[str]:
    """Return a command that trains in a separate process, so that it can be killed."""
    code = (
        "import sys, json; from imtok.config import from_dict; from imtok.training.run import RunConfig\n"
        "from imtok.training.launch import train\n"
        "config = from_dict(RunConfig, json.loads(sys.argv[1]))\n"
        "train(config, sys.argv[2], sys.argv[3], resume='--resume' in sys.argv)"
    )
    return [sys.executable, "-c", code, json.dumps(to_dict(config)), signs, str(out), *flags]


@pytest.mark.parametrize(
    ("preset", "killed_after"),
    [
        ("insighttok-debug", 8),
        ("fqgan-debug", 7),
        ("textok-debug", 5),
        *(pytest.param("insighttok-debug", steps, marks=pytest.mark.slow) for steps in (1, 3, 6, 11)),
    ],
)
def test_killed_run_resumes_bit_exactly(signs: str, tmp_path: Path, preset: str, killed_after: int, needs) -> None:
    if not preset.startswith("insighttok"):
        needs("text_encoder/minilm")
    no_validation = {"preview_every": 0, "evaluate_every": 0}
    config = small_run(preset, save_every=2, threads=1, precision="bf16", global_batch_size=2, **no_validation)
    straight = train(config, signs, tmp_path / "straight")
    out = tmp_path / "killed"
    with subprocess.Popen(run_command(config, signs, out), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while logged_lines(out) < killed_after:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    resumed = train(config, signs, out, resume=True)
    for file in ("model.safetensors", "resume/step-00000012/state.safetensors"):
        a, b = load_file(straight / file), load_file(resumed / file)
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("file", ["model", "resume"])
def test_run_killed_in_its_final_save_resumes_to_consistent_files(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Whichever of the two files the kill prevents: no step is left that would write it later."""
    config = small_run(phases=(Phase(name="all", steps=2),), ema_decay=None, save_every=1, preview_every=0)
    write, writes = getattr(RunFolder, f"write_{file}"), []

    def write_or_die(folder: RunFolder, *arguments: Any) -> None:
        writes.append(arguments)
        if len(writes) == 3:  # at the start, after the first step, and here
            raise KeyboardInterrupt
        write(folder, *arguments)

    monkeypatch.setattr(RunFolder, f"write_{file}", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        train(config, signs, tmp_path / "run")
    out = train(config, signs, tmp_path / "run", resume=True)
    state, saved = load_file(out / "resume/step-00000002/state.safetensors"), load_file(out / "model.safetensors")
    assert [name for name in saved if not torch.equal(saved[name], state[f"module.task.tokenizer.{name}"])] == []


def test_sigterm_saves_after_the_current_step(signs: str, tmp_path: Path) -> None:
    config = small_run(phases=(Phase(name="all", steps=500),), save_every=0, preview_every=0)
    out = tmp_path / "run"
    with subprocess.Popen(run_command(config, signs, out), stderr=subprocess.PIPE, text=True) as process:
        while not logged_lines(out):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in stderr  # the caller must not take the run for finished
    last = RunFolder(out).read_metrics()[-1]["step"]
    assert 0 < last < 500
    assert [folder.name for folder in (out / "resume").iterdir()] == [f"step-{last:08d}"]
    state, saved = load_file(out / f"resume/step-{last:08d}/state.safetensors"), load_file(out / "model.safetensors")
    assert [name for name in saved if not torch.equal(saved[name], state[f"module.average.module.{name}"])] == []


@pytest.mark.parametrize("steps", [1, 2])
def test_stop_requested_in_the_last_step_is_ignored(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    @contextmanager
    def request_stop_at_once(trainer: Trainer) -> Iterator[None]:
        trainer._asked_to_stop = True
        yield

    monkeypatch.setattr(Trainer, "_stoppable", request_stop_at_once)
    config = small_run(phases=(Phase(name="all", steps=steps),), preview_every=0)
    with nullcontext() if steps == 1 else pytest.raises(KeyboardInterrupt):
        train(config, signs, tmp_path / "run")
    assert (tmp_path / "run/resume/step-00000001").is_dir()


def test_no_signal_handlers_outside_of_the_main_thread() -> None:
    def enter() -> None:
        with Trainer._stoppable(SimpleNamespace()):
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result()


def test_foreign_model_file_is_not_overwritten(signs: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds a model.safetensors of something else"):
        train(small_run(), signs, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


def test_rejects_unfinished_shards(signs: str, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(signs, shards)
    progress = json.loads((shards / "progress.json").read_text())
    (shards / "progress.json").write_text(json.dumps(progress | {"next_row": 20}))
    for data, validation in ((str(shards), None), (signs, str(shards))):
        with pytest.raises(DataError, match="20 of 24 pictures are done"):
            train(small_run(), data, tmp_path / "run", validation)


def test_rejects_unreadable_validation_pictures() -> None:
    bad = Sample(image=b"no picture", path="bad.png", width=64, height=64)
    with pytest.raises(ConfigError, match="none of the 2 pictures to look at while training can be read"):
        Validation(small_run(), InMemoryDataset([bad] * 2), held_out=True)


def test_started_run_is_not_overwritten_or_resumed_with_other_settings(signs: str, tmp_path: Path) -> None:
    phases = (Phase(name="all", steps=1),)
    train(small_run(phases=phases), signs, tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run; give --resume"):
        train(small_run(phases=phases), signs, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"was started with training.seed = 0, not 7"):
        train(small_run(phases=phases, seed=7), signs, tmp_path / "run", resume=True)


def test_micro_batch_size_is_fixed_if_a_loss_compares_its_pictures(signs: str, tmp_path: Path) -> None:
    phases = (Phase(name="all", steps=1),)
    for preset, may_change in (("insighttok-debug", True), ("fqgan-debug", False)):
        out = tmp_path / preset
        train(small_run(preset, phases=phases), signs, out)
        other = small_run(preset, phases=phases, micro_batch_size=2)
        if may_change:
            train(other, signs, out, resume=True)
        else:
            with pytest.raises(ConfigError, match=r"was started with training.micro_batch_size = None, not 2"):
                train(other, signs, out, resume=True)


def test_init_from_rejects_a_codebook_with_another_update_rule(signs: str, tmp_path: Path) -> None:
    """By names and shapes alone, a codebook trained by gradient descent would be taken for one of running means."""
    phases = (Phase(name="all", steps=1),)
    first = train(small_run("fqgan-debug", phases=phases), signs, tmp_path / "begun")
    config = small_run("fqgan-debug", phases=phases)
    quantizer = dataclasses.replace(config.tokenizer.quantizer, update="ema")
    tokenizer = dataclasses.replace(config.tokenizer, quantizer=quantizer)
    losses = dataclasses.replace(config.losses, entropy_weight=0.0)
    other = dataclasses.replace(config, tokenizer=tokenizer, losses=losses)
    with pytest.raises(ConfigError, match=r"has tokenizer.quantizer.update = gradient, this run ema"):
        train(other, signs, tmp_path / "other", init_from=str(first))


def test_fine_tuning_starts_from_another_projects_checkpoint(signs: str, tmp_path: Path) -> None:
    checkpoint = Path(__file__).parents[1] / "tokenizers/reference/llamagen_tiny.pt"
    foreign = load(str(checkpoint))
    assert isinstance(foreign, VQGAN)
    phases = (Phase(name="decoder", steps=2, trains=("decoder",)),)
    config = dataclasses.replace(small_run(phases=phases, ema_decay=None), tokenizer=foreign.config)
    out = train(config, signs, tmp_path / "run", init_from=str(checkpoint))
    tuned, original = load(str(out)).weights(), foreign.weights()
    changed = {name.split(".")[0] for name in original if not torch.equal(original[name], tuned[name])}
    assert changed == {"decoder"}
    assert teachers_of_weights(out) == {UNKNOWN}
    with pytest.raises(ConfigError, match=r"--init-from .*has tokenizer\.channel_multipliers\.1 = 1, this run 2"):
        train(small_run(phases=phases), signs, tmp_path / "other", init_from=str(checkpoint))
    with pytest.raises(ConfigError, match=r"--init-from .* is of the kind vqgan, this run's tokenizer textok"):
        train(small_run("baseline-nano", phases=phases), signs, tmp_path / "other", init_from=str(checkpoint))


def test_nan_stops_the_run_and_keeps_the_state_before_it(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_from(monkeypatch, 5)
    with pytest.raises(TrainingStopped, match=r"step 5: l1 is nan"):
        train(small_run(save_every=2), signs, tmp_path / "run")
    saved = load_file(tmp_path / "run/resume/step-00000004/state.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values() if tensor.is_floating_point())


def test_rollback_continues_with_other_pictures(signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = poison_from(monkeypatch, 5, once=True)
    config = small_run(save_every=3, log_every=6)
    watchdog = dataclasses.replace(config.training.watchdog, action="rollback")
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, watchdog=watchdog))
    added: list[dict[str, float]] = []
    add = TrainingLog.add

    def keep_and_add(log: TrainingLog, *rest: Any) -> None:
        added.append(rest[-1])
        add(log, *rest)

    monkeypatch.setattr(TrainingLog, "add", keep_and_add)
    out = train(config, signs, tmp_path / "run")
    state = json.loads((out / "resume/step-00000012/state.json").read_text())
    assert state["rollbacks"] == 1
    assert len(seen) == 14  # the fourth and the fifth step twice
    assert not torch.equal(seen[3], seen[5])
    line = next(line for line in RunFolder(out).read_metrics() if line["step"] == 6)
    assert line["l1"] == pytest.approx(sum(numbers["l1"] for numbers in added[4:7]) / 3)  # without the undone steps
    assert "step 5: l1 is nan" in (out / "metrics.jsonl").read_text()
    assert all(torch.isfinite(t).all() for t in load_file(out / "model.safetensors").values())


def test_number_of_rollbacks_survives_resume(signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_from(monkeypatch, 5)
    config = small_run(save_every=3)
    watchdog = dataclasses.replace(config.training.watchdog, action="rollback", max_rollbacks=1)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, watchdog=watchdog))
    for _ in range(2):  # the resumed run does not roll back again
        with pytest.raises(TrainingStopped, match=r"l1 is nan"):
            train(config, signs, tmp_path / "run", resume=True)
        state = json.loads((tmp_path / "run/resume/step-00000003/state.json").read_text())
        assert (state["step"], state["rollbacks"]) == (3, 1)
    assert len([line for line in RunFolder(tmp_path / "run").read_metrics() if "rollback" in line]) == 1


def test_rejects_ranks_with_different_states(signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = train(small_run(phases=(Phase(name="all", steps=2),)), signs, tmp_path / "run")
    monkeypatch.setattr(trainer.ObjectGroup, "gather", lambda self, mine: [mine, (1, 0)])
    with pytest.raises(ConfigError, match=r"have found different states \(after steps 2, 1\)"):
        train(small_run(phases=(Phase(name="all", steps=2),)), signs, out, resume=True)


def test_run_started_by_another_process_meanwhile_is_not_overwritten(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run(phases=(Phase(name="all", steps=2),))
    build, first = launch._tokenizer_trainer, []

    def build_slowly(*arguments: Any) -> Any:
        built = build(*arguments)
        if not first:
            first.append(True)
            train(config, signs, tmp_path / "run")
        return built

    monkeypatch.setattr(launch, "_tokenizer_trainer", build_slowly)
    with pytest.raises(ConfigError, match="another process has begun a run here meanwhile"):
        train(config, signs, tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").read_metrics()) > 0
    assert (tmp_path / "run/resume/step-00000002").is_dir()


def poison_from(monkeypatch: pytest.MonkeyPatch, step: int, once: bool = False) -> list[torch.Tensor]:
    """Make the l1 loss NaN from call number `step` on, or only at that call; return the pictures of every call."""
    real, seen = tasks.l1, []

    def l1(images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        seen.append(images.clone())
        bad = len(seen) == step if once else len(seen) >= step
        return real(images, reconstruction) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(tasks, "l1", l1)
    return seen


def test_resume_allows_other_micro_batches_but_not_other_pictures(signs: str, tmp_path: Path) -> None:
    phases = (Phase(name="all", steps=1),)
    out = train(small_run(phases=phases), signs, tmp_path / "run")
    train(small_run(phases=phases, micro_batch_size=1, log_every=7), signs, out, resume=True)
    synthesize(str(tmp_path / "others"), count=5, size=64, word_height=(12.0, 24.0))
    with pytest.raises(ConfigError, match="was started on 24 pictures, these are 5"):
        train(small_run(phases=phases), str(tmp_path / "others"), out, resume=True)
    state = out / "resume/step-00000001/state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps({name: value for name, value in values.items() if name != "pictures"}))
    with pytest.raises(ConfigError, match=r"state\.json: has no pictures; the state is damaged"):
        train(small_run(phases=phases), signs, out, resume=True)


def test_missing_network_of_a_later_phase_raises_at_the_start(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise MissingWeights(f"{name} is missing")

    monkeypatch.setattr("imtok.pretrained.load", missing)
    phases = (Phase(name="first", steps=1), Phase(name="second", steps=1, weights={"face": 1.0}))
    with pytest.raises(MissingWeights, match="face_features/mobilefacenet"):
        train(small_run(phases=phases), signs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fine_tuning_does_not_reinitialize_the_codebook(signs: str, tmp_path: Path) -> None:
    first = train(small_run(), signs, tmp_path / "first")
    with pytest.raises(ConfigError, match="begins without quantization, which redraws the codebook"):
        train(small_run(), signs, tmp_path / "second", init_from=str(first))
    phases = (Phase(name="all", steps=1),)
    second = train(small_run(phases=phases), signs, tmp_path / "third", init_from=str(first))
    before, after = (load_file(run / "model.safetensors")["quantizer.codebook"] for run in (first, second))
    assert (before * after).sum(1).mean() > 0.9


def test_teachers_of_the_initial_weights_are_recorded(signs: str, tmp_path: Path) -> None:
    first = train(small_run(), signs, tmp_path / "first")
    values = RunFolder(first).read_config()
    values["losses"]["ocr_weight"] = 1.0
    RunFolder(first).write_config(values)
    config = small_run(phases=(Phase(name="all", steps=2),))
    second = train(config, signs, tmp_path / "second", init_from=str(first))
    train(config, signs, second, resume=True)
    third = train(config, signs, tmp_path / "third", init_from=str(second))
    assert teachers_of_weights(third) == {"text_features/craft"}


def test_steps_scale_all_phases() -> None:
    phases = (Phase(name="a", steps=200), Phase(name="b", steps=40), Phase(name="c", steps=40))
    for steps, expected in ((28, [20, 4, 4]), (3, [1, 1, 1]), (560, [400, 80, 80]), (None, [200, 40, 40])):
        scaled = TrainingConfig(phases=phases, steps=steps).scheduled_phases()
        assert [phase.steps for phase in scaled] == expected


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(ConfigError, match="no loss term is called txt"):
        Phase(name="x", steps=1, weights={"txt": 1.0})
    with pytest.raises(ConfigError, match="less than one step for each"):
        TrainingConfig(phases=(Phase(name="a", steps=5),) * 3, steps=2)
    nan, inf = float("nan"), float("inf")
    bad = [
        ("micro_batch_size", -1),
        ("global_batch_size", 0),
        ("evaluation_pictures", 0),
        ("save_every", -1),
        ("ema_decay", 1.0),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", nan),
        ("threads", -1),
        ("seed", -1),
        ("seed", 99999999999999999999),
    ]
    for name, value in bad:
        with pytest.raises(ConfigError, match=f"training: .*{name}"):
            TrainingConfig(phases=(Phase(name="a", steps=5),), **{name: value})
    for name, value in (
        ("learning_rate", -1.0),
        ("learning_rate", inf),
        ("betas", (1.5, 0.9)),
        ("betas", (0.5, nan)),
        ("weight_decay", -1.0),
        ("warmup_share", 7.0),
        ("final_share", nan),
    ):
        with pytest.raises(ConfigError, match=f"optimizer: .*{name}"):
            OptimizerConfig(**{name: value})
    for name, value in (
        ("patience", 0),
        ("max_rollbacks", -1),
        ("min_codebook_used", nan),
        ("min_discriminator_loss", inf),
    ):
        with pytest.raises(ConfigError, match=f"watchdog: .*{name}"):
            WatchdogConfig(**{name: value})
    with pytest.raises(ConfigError, match=r"phase x: learning_rate = 0\.0 must be positive"):
        Phase(name="x", steps=1, learning_rate=0.0)
    with pytest.raises(ConfigError, match="r1_every = 0 must be at least 1"):
        LossConfig(r1_every=0)
    with pytest.raises(ConfigError, match=r"losses: the weight of adversarial is -0\.5; it must be 0 or more"):
        LossConfig(adversarial_weight=-0.5)
    with pytest.raises(ConfigError, match="phase x: the weight of text is nan"):
        Phase(name="x", steps=1, weights={"text": float("nan")})
    with pytest.raises(ConfigError, match="must not be negative"):
        LossConfig(adversarial_start=-1)
    generator = presets.get_generator("far-debug")
    phases = (dataclasses.replace(generator.training.phases[0], region_share=0.5),)
    with pytest.raises(ConfigError, match="region_share and quantize are a tokenizer's; generators have none"):
        dataclasses.replace(generator, training=dataclasses.replace(generator.training, phases=phases))
    with pytest.raises(ConfigError, match="no preset is called 'insighttok-mega'"):
        presets.get("insighttok-mega")
