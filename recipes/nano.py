"""Train `vqgan-nano` and `insighttok-nano`, the twins that imtok ships, from raw pictures to weights and scores.

    python recipes/nano.py --text PICTURES… --faces PICTURES… --plain PICTURES… --out FOLDER

Words are detected in the `--text` pictures and faces in the `--faces` pictures, signs are rendered, and everything is
split by content. One tokenizer is pretrained without the text and face losses. From its weights, two runs continue on
the same pictures in the same order, one without and one with the two losses. Both are evaluated on held-out pictures,
and the weights are written in fp16, with config and log. Every step can be killed and resumes where it was.

The shipped weights were trained on development pictures under research-only and unknown licences (src/imtok/weights/
*/README.md lists them), so they are for research, and this recipe runs on your own pictures.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import shutil
from pathlib import Path

import tyro
from nano_data import prepare, signs

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.evaluation.evaluate import evaluate
from imtok.training.launch import train
from imtok.training.run import RunConfig

PRETRAINING = "nano-pretraining"
TWINS = ("vqgan-nano", "insighttok-nano")


def main(text: tuple[str, ...], faces: tuple[str, ...], plain: tuple[str, ...], out: Path) -> None:
    """Run the whole recipe.

    Args:
        text: sources of pictures with words, in any format that imtok reads.
        faces: sources of pictures with faces.
        plain: sources of other pictures.
        out: working folder.
    """
    data = prepare(text, faces, plain, out, presets.get(TWINS[0]).data.crop, signs())
    start = ship(run(presets.get(PRETRAINING), data, out / PRETRAINING), out / "shipped" / PRETRAINING)
    for name in TWINS:
        ship(run(presets.get(f"{name}-finetune"), data, out / name, start), out / "shipped" / name)
    print(evaluate([out / "shipped" / name for name in TWINS], test_sets(data), out / "scores"))


def run(config: RunConfig, shards: Path, out: Path, start: Path | None = None) -> Path:
    """Train a tokenizer to the end, resuming an unfinished run; a finished run is left alone.

    Args:
        config: config of the run.
        shards: folder of shards with the splits `train` and `validation`.
        out: run folder.
        start: run folder of the weights to start from; None for fresh weights.

    Returns:
        The run folder.
    """
    folder = RunFolder(out)
    training, validation = str(shards / "train"), str(shards / "validation")
    init_from = None if start is None else str(start)
    return train(config, training, out, validation=validation, resume=folder.exists(), init_from=init_from)


def test_sets(shards: Path) -> list[Path]:
    """Return the folders of the test sets that have pictures."""
    return [folder for folder in sorted((shards / "test").iterdir()) if any(folder.glob("*.parquet"))]


def ship(run: Path, out: Path) -> Path:
    """Write a run as the package ships it: fp16 weights, config, log and the folders that a generator needs."""
    out.mkdir(parents=True, exist_ok=True)
    RunFolder(out).write_model({name: tensor.half() for name, tensor in RunFolder(run).read_model().items()})
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, out / name)
    for folder in ("tokenizer", "unseen_captions", "language_model"):
        shutil.rmtree(out / folder, ignore_errors=True)
        if (run / folder).exists():
            shutil.copytree(run / folder, out / folder)
    return out


if __name__ == "__main__":
    tyro.cli(main)
