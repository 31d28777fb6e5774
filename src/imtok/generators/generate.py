"""`imtok generate`: write picture files for labels or prompts; an interrupted call can be resumed."""

import dataclasses
import json
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from imtok.config import ConfigError
from imtok.data.filling import check_alone
from imtok.data.pictures import to_uint8
from imtok.data.readers import read_table
from imtok.data.rows import as_unicode, listed_captions
from imtok.data.sample import DataError
from imtok.generators.catalog import load, weights_hash
from imtok.layers.collective import best_device
from imtok.layers.precision import Precision

_BAR = "{l_bar}{bar}| {n:.1f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"
SETTINGS = "imtok"
"""Key of the PNG text chunk that records how a picture was generated."""


def generate(
    run: str | PathLike[str],
    out: str | PathLike[str],
    labels: str | Sequence[str] | None = None,
    prompts: str | Sequence[str] | None = None,
    count: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    precision: Precision = "fp32",
    **sampling: Any,
) -> list[Path]:
    """Write OUT/00000.png, 00001.png, …; existing files that were generated with the same settings are kept.

    Args:
        run: a shipped generator's name or a run folder.
        out: output folder.
        labels: classes by name or number; a single one may be given without a list.
        prompts: texts, a single text, or a file of texts (see `read_prompts`).
        count: number of pictures for each label or prompt.
        seed: seed of the first picture; each further picture has the next number.
        batch_size: number of pictures that are generated together.
        precision: precision of the generator's weights.
        sampling: sampling settings, as for `ImageGenerator.generate`.

    Returns:
        The paths of all files.

    Raises:
        ConfigError: no label or prompt is given, a class or setting is unknown, or an existing file was generated with
            other settings.
        DataError: several processes were started, or the file of prompts cannot be read.
    """
    check_alone(out)
    run = os.fspath(run)
    labels, prompts = ([given] if isinstance(given, str) else given for given in (labels, prompts))
    if count < 1 or batch_size < 1:
        raise ConfigError("count and batch-size must be at least 1")
    if labels is not None and prompts is not None:
        raise ConfigError("give labels or prompts, not both")
    given = read_prompts(prompts) if prompts is not None else labels
    pipeline = load(run, best_device(), torch.bfloat16 if precision == "bf16" else torch.float32)
    if given is None or not given:
        raise ConfigError(f"what shall be drawn? give --{pipeline.generator.conditioned_on}")
    wanted = [condition for condition in given for _ in range(count)]
    kind = "labels" if prompts is None else "prompts"
    pipeline.conditions(**{"labels": None, "prompts": None, kind: wanted})
    settings = pipeline.settings(**sampling)
    made = {"run": run, "sha256": weights_hash(run), "precision": precision, **dataclasses.asdict(settings)}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:05d}.png" for index in range(len(wanted))]
    notes = [
        json.dumps({**made, kind.removesuffix("s"): condition, "seed": seed + index})
        for index, condition in enumerate(wanted)
    ]
    missing = [index for index, file in enumerate(files) if not _is_generated(file, notes[index])]
    with tqdm(total=len(missing), unit="picture", disable=None, bar_format=_BAR) as progress:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            images = pipeline.generate(
                **{kind: [wanted[index] for index in batch]},
                seeds=[seed + index for index in batch],
                progress=lambda share, batch=batch: progress.update(share * len(batch)),
                **dataclasses.asdict(settings),
            )
            for index, picture in zip(batch, to_uint8(images), strict=True):
                _write(files[index], picture, notes[index])
    return files


def read_prompts(prompts: Sequence[str]) -> list[str]:
    """Return the prompts themselves, or those of a file: one per line, or the prompts or captions of a table.

    Args:
        prompts: texts, or a single file: a .jsonl or .csv table, or else plain text.

    Raises:
        DataError: the file does not exist, holds no prompts, or is not UTF-8.
    """
    first, kinds = prompts[0] if prompts else "", (".txt", ".jsonl", ".csv")
    if len(prompts) != 1 or not os.path.isfile(first):  # Path.is_file raises for long names, and prompts can be long
        if files := [prompt for prompt in prompts if len(prompt.split()) == 1 and prompt.lower().endswith(kinds)]:
            problem = "one file of prompts, or prompts themselves" if os.path.isfile(files[0]) else "no such file"
            raise DataError(f"{files[0]}: {problem}")
        return list(prompts)
    if first.lower().endswith(kinds[1:]):
        rows = (row for _, row in read_table(first))
        texts = [
            text
            for row in rows
            for text in ([as_unicode(row["prompt"])] if row.get("prompt") else listed_captions(row))
        ]
        if not texts:
            raise DataError(f"{first}: no row has a prompt or a caption")
        return texts
    try:
        text = Path(first).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{first}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise DataError(f"{first}: is empty")
    return [line for line in text.splitlines() if line.strip()]


def _is_generated(file: Path, note: str) -> bool:
    if not file.exists():
        return False
    with Image.open(file) as picture:
        found = picture.info.get(SETTINGS)
    # Older files do not record the precision; the run's path is ignored, since the hash identifies the weights.
    was, now = ({"precision": "fp32", **json.loads(text or "{}"), "run": None} for text in (found, note))
    if was != now:
        raise ConfigError(f"{file}: was made in another way ({found}); name another folder")
    return True


def _write(file: Path, picture: Any, note: str) -> None:
    metadata = PngInfo()
    metadata.add_text(SETTINGS, note)
    temporary = file.with_suffix(".partial")
    Image.fromarray(picture).save(temporary, "PNG", pnginfo=metadata)
    temporary.replace(file)
