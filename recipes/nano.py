"""Makes `vqgan-nano` and `insighttok-nano`, the twins that imtok ships, from raw pictures to weights and scores.

    python recipes/nano.py --text PICTURES… --faces PICTURES… --plain PICTURES… --out FOLDER

What happens: words are found in the first pictures and faces in the second; signs are rendered; everything is split by
content; one pretraining without the text and face losses; from its weights two continuations of the same pictures in
the same order, one without and one with the two losses; both are evaluated on pictures that neither saw; the weights
are written as fp16, with config and log. Every step can be killed and goes on where it was.

The shipped weights were made from development pictures under research-only and unknown licences (src/imtok/weights/
*/README.md lists them), so they are for research, and this recipe runs on pictures of your own.
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
        text: pictures with words (anything that imtok reads).
        faces: pictures with faces.
        plain: other pictures.
        out: working folder.
    """
    data = prepare(text, faces, plain, out, presets.get(TWINS[0]).data.crop, signs())
    start = ship(run(presets.get(PRETRAINING), data, out / PRETRAINING), out / "shipped" / PRETRAINING)
    for name in TWINS:
        ship(run(presets.get(f"{name}-finetune"), data, out / name, start), out / "shipped" / name)
    print(evaluate([out / "shipped" / name for name in TWINS], test_sets(data), out / "scores"))


def run(config: RunConfig, shards: Path, out: Path, start: Path | None = None) -> Path:
    """Train to the end, or go on with it; a finished run is left alone.

    Args:
        config: which run.
        shards: with `train` and `validation` in it.
        out: run folder.
        start: weights to begin with.
    """
    folder = RunFolder(out)
    training, validation = str(shards / "train"), str(shards / "validation")
    begin = None if start is None else str(start)
    return train(config, training, out, validation=validation, resume=folder.exists(), init_from=begin)


def test_sets(shards: Path) -> list[Path]:
    """The kinds of test pictures of which there are any."""
    return [folder for folder in sorted((shards / "test").iterdir()) if any(folder.glob("*.parquet"))]


def ship(run: Path, out: Path) -> Path:
    """Weights in fp16, config, log, and what a generator's run has to open with: what the package carries."""
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
