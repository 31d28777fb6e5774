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

import dataclasses
import shutil
from pathlib import Path

import tyro
from nano_data import NanoData, prepare

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.training.launch import train

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
    data = prepare(text, faces, plain, out, presets.get(PRETRAINING).data.crop)
    run(PRETRAINING, data, out)
    start = ship(RunFolder(out / PRETRAINING), out / "shipped" / PRETRAINING)
    for name in TWINS:
        run(f"{name}-finetune", data, out, start)
        ship(RunFolder(out / f"{name}-finetune"), out / "shipped" / name)


def run(preset: str, data: NanoData, out: Path, start: Path | None = None, seed: int = 0) -> None:
    """Train a preset to its end, or go on with it; a finished one is left alone."""
    folder = RunFolder(out / preset)
    config = presets.get(preset)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    train(
        config,
        str(data.training),
        folder.path,
        validation=str(data.validation),
        resume=folder.exists(),
        init_from=str(start) if start else None,
    )


def ship(run: RunFolder, out: Path) -> Path:
    """Weights in fp16, config and log: what the package carries."""
    out.mkdir(parents=True, exist_ok=True)
    RunFolder(out).write_model({name: tensor.half() for name, tensor in run.read_model().items()})
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run.path / name, out / name)
    return out


if __name__ == "__main__":
    tyro.cli(main)
