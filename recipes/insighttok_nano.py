"""Makes `insighttok-nano`, the small tokenizer that imtok ships, from raw pictures to weights.

    python recipes/insighttok_nano.py --text PICTURES… --faces PICTURES… --plain PICTURES… --out FOLDER

What happens: words are found in the first pictures and faces in the second; signs are rendered; everything is split by
content cluster into training and validation shards; the preset is trained through all its phases, with checkpoints;
the weights are written as fp16, with config and log. Every step can be killed and goes on where it was.

The shipped weights were made from development pictures under research-only and unknown licences (src/imtok/weights/
insighttok-nano/README.md lists them), so they are for research, and this recipe runs on pictures of your own.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import tyro

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.data.annotate import annotate
from imtok.data.readers import open_source
from imtok.data.sample import Sample
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.training.launch import train

SIGNS = 6000
VALIDATION_SHARE = 0.05


def main(
    text: tuple[str, ...],
    faces: tuple[str, ...],
    plain: tuple[str, ...],
    out: Path,
    preset: str = "insighttok-nano",
    install: bool = False,
) -> None:
    """Run the whole recipe.

    Args:
        text: pictures with words (anything that imtok reads).
        faces: pictures with faces.
        plain: other pictures.
        out: working folder.
        preset: which run.
        install: also copy the result to the shipped weights.
    """
    annotated = [annotated_folder(out, source, find_words=True) for source in text]
    annotated += [annotated_folder(out, source, find_faces=True) for source in faces]
    annotated += [annotated_folder(out, source) for source in plain]
    if not (out / "shards" / "complete").exists():
        write_split(annotated, out / "shards")
    run = RunFolder(out / preset)
    train(
        presets.get(preset),
        str(out / "shards" / "train"),
        run.path,
        validation=str(out / "shards" / "validation"),
        resume=run.exists(),
    )
    ship(run, out / "shipped" / preset)
    if install:
        home = Path(__file__).parents[1] / "src" / "imtok" / "weights" / preset
        shutil.copytree(out / "shipped" / preset, home, dirs_exist_ok=True)


def annotated_folder(out: Path, source: str, *, find_words: bool = False, find_faces: bool = False) -> Path:
    """Annotate once; a folder that was begun is finished."""
    folder = out / "annotated" / Path(source).name
    annotate(source, str(folder), text=find_words, faces=find_faces)
    return folder


def write_split(annotated: list[Path], out: Path) -> None:
    """One set of training and one of validation shards; a cluster of near-duplicates never lies in both."""
    shutil.rmtree(out, ignore_errors=True)
    with (
        ShardWriter(str(out / "train")) as training,
        ShardWriter(str(out / "validation")) as validation,
    ):
        for sample in samples(annotated):
            (validation if is_held_out(sample) else training).write(sample)
    (out / "complete").touch()


def samples(annotated: list[Path]) -> Iterator[Sample]:
    """All annotated pictures, then the signs."""
    for folder in annotated:
        yield from open_source(str(folder))
    yield from SyntheticPictures(SIGNS, seed=1, size=128, split="train")


def is_held_out(sample: Sample) -> bool:
    """By a hash of the picture's cluster, or of its path where it has none."""
    digest = hashlib.sha256((sample.cluster or sample.path).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < VALIDATION_SHARE


def ship(run: RunFolder, out: Path) -> None:
    """Weights in fp16, config and log: what the package carries."""
    out.mkdir(parents=True, exist_ok=True)
    shipped = RunFolder(out)
    shipped.write_model({name: tensor.half() for name, tensor in run.read_model().items()})
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run.path / name, out / name)


if __name__ == "__main__":
    tyro.cli(main)
