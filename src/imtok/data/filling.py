"""A folder of shards, filled picture by picture: killed at any moment and called again, it goes on."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from tqdm import tqdm

from imtok.config import FORMAT_VERSION
from imtok.data.addresses import join, read_json, read_text, write_text
from imtok.data.sample import DataError, Dataset, PictureError, Sample
from imtok.data.shards import ShardWriter, holds_shards


@dataclass(kw_only=True)
class Progress:
    """How far a folder is filled; `progress.json` in it. Everything before `next_row` is done and on disk.

    Attributes:
        settings: what must be the same for a resumed run to give what an uninterrupted one gives.
        rows: pictures in the source.
        next_row: the first picture that no finished shard accounts for.
        shards: finished ones.
        kept: pictures in them.
        dropped: pictures that were turned away.
        skipped: pictures that could not be read, listed in `skipped.jsonl`.
    """

    settings: dict[str, Any]
    rows: int
    next_row: int = 0
    shards: int = 0
    kept: int = 0
    dropped: int = 0
    skipped: int = 0
    format_version: int = FORMAT_VERSION

    def __str__(self) -> str:
        return (
            f"{self.next_row} of {self.rows} pictures: {self.kept} kept in {self.shards} shards, "
            f"{self.dropped} dropped by the rules, {self.skipped} unreadable (skipped.jsonl)"
        )


def fill(
    source: Dataset,
    out: str,
    settings: dict[str, Any],
    samples_per_shard: int = 256,
    make: Callable[[Sample], Sample | None] = lambda sample: sample,
) -> Progress:
    """Write the pictures of a source, or what becomes of them, as shards.

    Args:
        source: a PictureError on reading a row skips it.
        out: folder for the shards, `skipped.jsonl` and `progress.json`.
        settings: JSON values that tell this work from another; it is resumed only with the same.
        samples_per_shard: what was kept after the last full shard is done again after a kill.
        make: of a picture what shall be written; None drops it, a PictureError skips it, any other ends all.

    Raises:
        DataError: torchrun started several, `out` was begun with other settings, or not one picture could be read.
    """
    check_alone(out)
    progress = _load_progress(out, settings, len(source))
    skipped = [entry for entry in _load_skipped(out) if entry["row"] < progress.next_row]
    first = progress.next_row
    with (
        ShardWriter(out, samples_per_shard, first_shard=progress.shards) as writer,
        tqdm(total=progress.rows, initial=first, unit=" pictures", disable=None) as bar,
    ):
        _save(out, progress, skipped, first, progress.shards)
        for row in range(first, progress.rows):
            try:
                made = make(source[row])
            except PictureError as error:
                skipped.append({"row": row, "reason": str(error)})
            else:
                if made is None:
                    progress.dropped += 1
                elif writer.write(made):
                    _save(out, progress, skipped, row + 1, writer.finished_shards)
            bar.update()
            bar.set_postfix(skipped=len(skipped), refresh=False)
        writer.close()
        _save(out, progress, skipped, progress.rows, writer.finished_shards)
    if progress.rows and progress.skipped == progress.rows:
        raise DataError(f"none of {progress.rows} pictures could be read; first: {skipped[0]['reason']}")
    return progress


def check_finished(folder: str | PathLike[str]) -> None:
    """Whether all pictures are there, if `fill` has been at work on a folder of shards.

    Raises:
        DataError: it has not finished.
    """
    values = (read_json(join(folder, "progress.json")) if holds_shards(folder) else None) or {}
    done, rows = values.get("next_row", 0), values.get("rows", 0)
    if done < rows:
        raise DataError(f"{folder}: {done} of {rows} pictures are done; call what writes it again, so that it finishes")


def check_begun(folder: str | PathLike[str], begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Whether a folder is being filled as it was begun.

    Args:
        folder: where.
        begun: the settings that it was begun with, of which some may be missing.
        wanted: those that are asked for now.

    Raises:
        DataError: names the first that differs.
    """
    for name, now in wanted.items():
        if (was := begun.get(name)) != now:
            differs = f"with {name} = {was!r}, now it is {now!r}"
            if name == "fingerprint":
                differs = "with other pictures, or other files of them"
            raise DataError(f"{folder}: begun {differs}; name another folder")


def check_alone(out: str | PathLike[str]) -> None:
    """Whether this is the only process that writes somewhere.

    Raises:
        DataError: torchrun started several.
    """
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(f"{out}: several processes would write the same files; call it once, without torchrun")


def _load_progress(out: str, settings: dict[str, Any], rows: int) -> Progress:
    values = read_json(join(out, "progress.json"))
    if values is None:
        if holds_shards(out):
            raise DataError(f"{out}: holds shards of something else; name another folder")
        return Progress(settings=settings, rows=rows)
    if values.get("format_version") != FORMAT_VERSION or "settings" not in values:
        raise DataError(f"{out}: begun by another version of imtok; name another folder")
    progress = Progress(**values)
    begun, wanted = {"pictures": progress.rows, **progress.settings}, {"pictures": rows, **settings}
    if begun != wanted and not (progress.shards or holds_shards(out)):  # nothing to be lost
        return Progress(settings=settings, rows=rows)
    check_begun(out, begun, wanted)
    return progress


def _load_skipped(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (read_text(join(out, "skipped.jsonl")) or "").splitlines()]


def _save(out: str, progress: Progress, skipped: list[dict[str, Any]], next_row: int, shards: int) -> None:
    """Account for what is on disk; the shards and the list of skipped pictures come before the count of them."""
    progress.next_row, progress.shards = next_row, shards
    progress.skipped = len(skipped)
    progress.kept = next_row - progress.dropped - progress.skipped
    write_text(join(out, "skipped.jsonl"), "".join(json.dumps(entry) + "\n" for entry in skipped))
    write_text(join(out, "progress.json"), json.dumps(asdict(progress), indent=2) + "\n")
