"""Training in two processes gives the same result as in one process with the same global batch."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.config import ConfigError, to_dict
from imtok.data.sample import Face
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.tokenizers.encode import encode_pictures
from imtok.training.data_modules import share_of_batch
from imtok.training.launch import train
from imtok.training.trainer import Trainer

HERE = Path(__file__).parent
PRESETS = ["far-debug", *(pytest.param(f"{name}-debug", marks=pytest.mark.slow) for name in ("insightar", "dit"))]


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Synthetic signs; every second one is annotated with a face at an arbitrary place."""
    folder = tmp_path_factory.mktemp("signs") / "shards"
    points = ((18.0, 20.0), (34.0, 20.0), (26.0, 28.0), (20.0, 36.0), (32.0, 36.0))
    with ShardWriter(str(folder)) as writer:
        for index, sample in enumerate(SyntheticPictures(24, size=64, word_height=(12.0, 24.0))):
            faces = [Face(box=(10.0, 10.0, 42.0, 44.0), landmarks=points)] if index % 2 else []
            writer.write(dataclasses.replace(sample, faces=faces))
    return str(folder)


@pytest.fixture(scope="module")
def tokens(home: Path) -> dict[str, str]:
    """The training data of each generator: codes or latents of signs, by untrained tokenizers."""
    torch.manual_seed(0)
    tokenizer, run_folder = presets.create_tokenizer("textok-debug", text=None), RunFolder(home / "textok")
    run_folder.write_config(to_dict(dataclasses.replace(presets.get("textok-debug"), tokenizer=tokenizer.config)))
    run_folder.write_model(tokenizer.weights())
    encode_pictures(str(run_folder.path), home / "signs", home / "latents", 64)
    codes = str(home / "codes")
    return {"far-debug": codes, "insightar-debug": codes, "dit-debug": str(home / "latents")}


def launch(ranks: int, script: Path, *arguments: object) -> None:
    """Run a script in `ranks` processes that can form a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        torchrun = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        env = os.environ | {key: str(value) for key, value in (torchrun | {"MASTER_PORT": port}).items()}
        command = [sys.executable, str(script), *map(str, arguments)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=180)
            assert process.returncode == 0, stderr
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_tokenizer(
    out: Path, signs: str, ranks: int, dtype: str, steps: int, micro: int = 4, preset: str = "insighttok-debug"
) -> list[dict[str, torch.Tensor]]:
    """Train a tokenizer; return its state on every rank after `steps` steps."""
    out.mkdir()
    launch(ranks, HERE / "two_ranks.py", out, signs, preset, dtype, steps, micro)
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(ranks)]


def run_generators(out: Path, tokens: dict[str, str], ranks: int, sharded: bool = False) -> None:
    """Save each rank's first fp32 gradients and float64 weights after ten steps; two ranks use micro-batches of 2."""
    out.mkdir()
    pairs = [word for pair in tokens.items() for word in pair]
    launch(ranks, HERE / "two_ranks_generator.py", out, 8 // ranks**2, sharded, *pairs)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / a.double().norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize(
    ("preset", "micro"),
    [("insighttok-debug", 2), ("fqgan-debug", 4), pytest.param("insighttok-debug", 4, marks=pytest.mark.slow)],
)
def test_gradients_and_codebooks_equal_one_process(signs: str, tmp_path: Path, preset: str, micro: int) -> None:
    (one,) = run_tokenizer(tmp_path / "one", signs, 1, "float32", 1, micro=8, preset=preset)
    first, second = run_tokenizer(tmp_path / "two", signs, 2, "float32", 1, micro, preset)
    assert one["faces"] > 0
    gradients = [name for name in one if name.startswith("gradient.")]
    assert any("discriminator" in name for name in gradients)
    assert any("heads" in name for name in gradients) == (preset == "fqgan-debug")
    for layer in {name.rpartition(".")[0] for name in gradients}:
        # A layer's weight and bias are compared together: a bias's gradient may be a small remainder of large terms.
        of_layer = [name for name in gradients if name.rpartition(".")[0] == layer]
        expected, actual = (torch.cat([state[name].flatten() for name in of_layer]) for state in (one, first))
        assert difference(expected, actual) < 1e-5, layer
        assert all(torch.equal(first[name], second[name]) for name in of_layer)
    codebooks = [name for name in one if name.startswith("tokenizer.quantizer.")]
    assert codebooks
    for name in codebooks:
        assert difference(one[name], first[name]) < 1e-5
        assert torch.equal(first[name], second[name])


def test_ten_steps_equal_one_process_and_ranks_are_identical(signs: str, tmp_path: Path) -> None:
    (one,), (first, second) = (run_tokenizer(tmp_path / str(n), signs, n, "float64", 10) for n in (1, 2))
    states = [name for name in one if not name.startswith("gradient.")]
    assert [name for name in states if difference(one[name], first[name]) > 1e-5] == []
    assert [name for name in states if not torch.equal(first[name], second[name])] == []
    assert one["restarts"] > 0


@pytest.mark.parametrize(
    "names", [("far-debug", "dit-debug"), pytest.param(("insightar-debug",), marks=pytest.mark.slow)]
)
def test_generators_equal_one_process_with_and_without_sharding(
    tokens: dict[str, str], tmp_path: Path, names: tuple[str, ...]
) -> None:
    chosen = {name: tokens[name] for name in names}
    run_generators(tmp_path / "one", chosen, 1)
    for sharded in (False, True):
        run_generators(tmp_path / f"two-{sharded}", chosen, 2, sharded)
    for preset in names:
        first, last, muon = (
            load_file(tmp_path / "one" / preset / f"{kind}-0.safetensors") for kind in ("gradients", "weights", "muon")
        )
        gradients = [name for name in first if name.startswith("gradient.")]
        weights = [name for name in last if not name.startswith("gradient.")]
        assert len(gradients) > 10
        assert [name for name in gradients if first[name].norm() == 0] == []
        assert any(name.startswith("average.") for name in weights)
        assert any(difference(last[name], muon[name]) > 0.01 for name in weights)
        for folder in ("two-False", "two-True"):
            steps = [("gradients", first, gradients), ("weights", last, weights)]
            if folder == "two-False":
                steps.append(("muon", muon, weights))
            for kind, expected, compared in steps:
                for rank in range(2):
                    actual = load_file(tmp_path / folder / preset / f"{kind}-{rank}.safetensors")
                    assert [name for name in compared if difference(expected[name], actual[name]) > 1e-5] == []


def test_killed_two_rank_run_resumes_bit_exactly(signs: str, tmp_path: Path) -> None:
    script = HERE / "two_ranks_resumed.py"
    for folder, killed_at in (("straight", 0), ("killed", 7), ("killed", 0)):
        launch(2, script, tmp_path / folder, signs, killed_at)
        if killed_at:
            assert RunFolder(tmp_path / folder / "run").read_metrics()[-1]["step"] < 7
    straight, killed = (load_file(tmp_path / name / "run/model.safetensors") for name in ("straight", "killed"))
    assert [name for name in straight if not torch.equal(straight[name], killed[name])] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_killed_run_with_sharded_weights_resumes_bit_exactly(
    tokens: dict[str, str], tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, unfinished, data = HERE / "two_ranks_generator.py", tmp_path / "alone", tokens[preset]
    launch(2, script, tmp_path / "straight", preset, data, 0)
    launch(2, script, tmp_path / "killed", preset, data, 7)
    shutil.copytree(tmp_path / "killed", unfinished)
    launch(2, script, tmp_path / "killed", preset, data, 0)
    straight, killed = (load_file(tmp_path / name / "run/model.safetensors") for name in ("straight", "killed"))
    assert [name for name in straight if not torch.equal(straight[name], killed[name])] == []
    saved = tmp_path / "straight/run/resume/step-00000012"
    assert len(list(saved.glob("*.safetensors"))) == 2  # one per rank
    assert (tmp_path / "straight/run/previews/step-00000012.png").exists()
    # A single process can resume a run of two, from the weights that these have saved.
    expected, restored = load_file(unfinished / "run/model.safetensors"), {}

    def capture_weights(trainer: Trainer, *_: Any) -> None:
        restored.update({name: tensor.clone() for name, tensor in trainer.inference_model().weights().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_train_step", capture_weights)
    config = presets.get_generator(preset)
    training = dataclasses.replace(config.training, ema_decay=0.9)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, training=training), data, unfinished / "run", data, resume=True)
    assert restored.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], restored[name])] == []


def test_rejects_unsupported_weight_sharding_before_building_models(
    signs: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for builder in ("launch_generator.open_language_model", "launch_generator.GeneratorTask", "launch.TokenizerTask"):
        monkeypatch.setattr(f"imtok.training.{builder}", lambda *_: pytest.fail("too late"))
    codes = str(home / "codes")
    for preset, data, message in (("far-debug", codes, "torchrun"), ("insighttok-debug", signs, "for generators")):
        config = presets.get_run(preset)
        training = dataclasses.replace(config.training, shard_weights=True)
        with pytest.raises(ConfigError, match=message):
            train(dataclasses.replace(config, training=training), data, tmp_path / preset)
        with pytest.raises(ConfigError, match="muon needs whole matrices"):
            dataclasses.replace(training, optimizer=dataclasses.replace(training.optimizer, algorithm="muon"))


def test_torchrun_trains_a_preset(signs: str, tmp_path: Path) -> None:
    weights = [f"--training.phases.{phase}.weights.{term}=0" for phase in (2, 3) for term in ("text", "face")]
    settings = ["--training.steps", "4", *weights]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "imtok"]
    command += ["train", "insighttok-debug", "--data", signs, "--out", str(tmp_path / "run"), *settings]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run/model.safetensors").exists()
    assert (tmp_path / "run/metrics.jsonl").read_text().count('"phase"') == 4


def test_global_batch_is_split_evenly_or_rejected() -> None:
    assert share_of_batch(512, 32, None) == (16, 1)
    assert share_of_batch(512, 4, 16) == (16, 8)
    with pytest.raises(ConfigError, match="7 cannot be cut into 2"):
        share_of_batch(7, 2, None)
    with pytest.raises(ConfigError, match="micro_batch_size 3 does not divide the 4"):
        share_of_batch(8, 2, 3)
