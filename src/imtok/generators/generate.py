"""The verb: labels or prompts to picture files, which can be stopped at any moment and goes on."""

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
"""The key under which a picture file says how it was made."""


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
    """Write OUT/00000.png, 00001.png, …; files that are there already, made in the same way, are left alone.

    Args:
        run: a shipped generator or a run folder.
        out: folder.
        labels: classes by name or number, or one.
        prompts: texts, or one, or one file of them (see `read_prompts`).
        count: pictures of each label or prompt.
        seed: of the first picture; each further one has the next number.
        batch_size: pictures that are drawn together.
        precision: of the generator's weights.
        sampling: as for `ImageGenerator.generate`.

    Returns:
        The files.

    Raises:
        ConfigError: nothing to draw, an unknown class or setting, or a file of that name that was made in another way.
        DataError: several processes.
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
    missing = [index for index, file in enumerate(files) if not _is_made(file, notes[index])]
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
    """The texts themselves, or those of a file: a line each, or the captions or prompts of a JSONL or CSV table.

    Raises:
        DataError: a file that is not there, that holds no prompts, or whose text is not UTF-8.
    """
    first, kinds = prompts[0] if prompts else "", (".txt", ".jsonl", ".csv")
    if len(prompts) != 1 or not os.path.isfile(first):  # Path.is_file minds long names, and prompts can be long
        if files := [prompt for prompt in prompts if len(prompt.split()) == 1 and prompt.lower().endswith(kinds)]:
            several = "one file of prompts, or prompts themselves" if os.path.isfile(files[0]) else "no such file"
            raise DataError(f"{files[0]}: {several}")
        return list(prompts)
    if first.lower().endswith(kinds[1:]):
        rows = (row for _, row in read_table(first))
        found = [
            text
            for row in rows
            for text in ([as_unicode(row["prompt"])] if row.get("prompt") else listed_captions(row))
        ]
        if not found:
            raise DataError(f"{first}: no row has a prompt or a caption")
        return found
    try:
        text = Path(first).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{first}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise DataError(f"{first}: is empty")
    return [line for line in text.splitlines() if line.strip()]


def _is_made(file: Path, note: str) -> bool:
    if not file.exists():
        return False
    with Image.open(file) as picture:
        found = picture.info.get(SETTINGS)
    # Earlier files do not name the precision, and of where the weights lie their hash says more.
    was, now = ({"precision": "fp32", **json.loads(text or "{}"), "run": None} for text in (found, note))
    if was != now:
        raise ConfigError(f"{file}: was made in another way ({found}); name another folder")
    return True


def _write(file: Path, picture: Any, note: str) -> None:
    about = PngInfo()
    about.add_text(SETTINGS, note)
    temporary = file.with_suffix(".partial")
    Image.fromarray(picture).save(temporary, "PNG", pnginfo=about)
    temporary.replace(file)
