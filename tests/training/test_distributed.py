"""Two processes train exactly what one process with the same global batch trains."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imtok.config import ConfigError
from imtok.data.sample import Face
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.training.devices import share_of_batch

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Signs of which every second one is said to show a face, somewhere."""
    folder = tmp_path_factory.mktemp("signs") / "shards"
    points = ((18.0, 20.0), (34.0, 20.0), (26.0, 28.0), (20.0, 36.0), (32.0, 36.0))
    with ShardWriter(str(folder)) as writer:
        for index, sample in enumerate(SyntheticPictures(24, size=64, word_height=(12.0, 24.0))):
            faces = [Face(box=(10.0, 10.0, 42.0, 44.0), landmarks=points)] if index % 2 else []
            writer.write(dataclasses.replace(sample, faces=faces))
    return str(folder)


def run(
    out: Path, signs: str, ranks: int, dtype: str, steps: int, micro: int = 4, preset: str = "insighttok-debug"
) -> list[dict[str, torch.Tensor]]:
    """The state of every rank after so many steps."""
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        torchrun = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        env = os.environ | {key: str(value) for key, value in (torchrun | {"MASTER_PORT": port}).items()}
        command = [sys.executable, str(SCRIPT), str(out), signs, preset, dtype, str(steps), str(micro)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(ranks)]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / a.double().norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize(("preset", "micro"), [("insighttok-debug", 4), ("insighttok-debug", 2), ("fqgan-debug", 2)])
def test_gradients_and_codebooks_equal_one_process(signs: str, tmp_path: Path, preset: str, micro: int) -> None:
    (one,) = run(tmp_path / "one", signs, 1, "float32", 1, micro=8, preset=preset)
    first, second = run(tmp_path / "two", signs, 2, "float32", 1, micro, preset)
    assert one["faces"] > 0
    gradients = [name for name in one if name.startswith("gradient.")]
    assert any("discriminator" in name for name in gradients)
    for layer in {name.rpartition(".")[0] for name in gradients}:
        # A layer's weight and bias are compared together: a bias alone may be a small rest of large terms.
        of_layer = [name for name in gradients if name.rpartition(".")[0] == layer]
        expected, together = (torch.cat([of[name].flatten() for name in of_layer]) for of in (one, first))
        assert difference(expected, together) < 1e-5, layer
        assert all(torch.equal(first[name], second[name]) for name in of_layer)
    codebooks = [name for name in one if name.startswith("tokenizer.quantizer.")]
    assert codebooks
    for name in codebooks:
        assert difference(one[name], first[name]) < 1e-5
        assert torch.equal(first[name], second[name])


def test_weights_after_ten_steps_equal_one_process_and_codebooks_are_identical(signs: str, tmp_path: Path) -> None:
    (one,), (first, second) = (run(tmp_path / str(n), signs, n, "float64", 10) for n in (1, 2))
    states = [name for name in one if not name.startswith("gradient.")]
    assert [name for name in states if difference(one[name], first[name]) > 1e-5] == []
    assert [name for name in states if not torch.equal(first[name], second[name])] == []
    assert one["restarts"] > 0


def test_torchrun_trains_a_preset(signs: str, tmp_path: Path) -> None:
    weights = [f"--training.phases.{phase}.weights.{term}=0" for phase in (2, 3) for term in ("text", "face")]
    settings = ["--training.steps", "4", *weights]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "imtok"]
    command += ["train", "insighttok-debug", "--data", signs, "--out", str(tmp_path / "run"), *settings]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run/model.safetensors").exists()
    assert (tmp_path / "run/metrics.jsonl").read_text().count('"phase"') == 4


def test_batch_is_cut_evenly_or_refused() -> None:
    assert share_of_batch(512, 32, None) == (16, 1)
    assert share_of_batch(512, 4, 16) == (16, 8)
    with pytest.raises(ConfigError, match="7 cannot be cut into 2"):
        share_of_batch(7, 2, None)
    with pytest.raises(ConfigError, match="micro_batch_size 3 does not divide the 4"):
        share_of_batch(8, 2, 3)
