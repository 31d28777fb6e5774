"""Resumable writing of shards: an interrupted run continues when it is started again."""

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
    """Progress of a run, stored as `progress.json` in its folder. All rows before `next_row` are done and on disk.

    Attributes:
        settings: values that a resumed run must share, so that its result equals that of an uninterrupted run.
        rows: number of pictures in the source.
        next_row: first row that is not covered by the finished shards.
        shards: number of finished shards.
        kept: number of pictures in the finished shards.
        dropped: number of pictures rejected by the rules.
        skipped: number of pictures that could not be read, listed in `skipped.jsonl`.
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
    """Write the samples of a source, optionally transformed, as shards; resume an interrupted run.

    Args:
        source: the samples; a row that raises PictureError is skipped.
        out: folder for the shards, `skipped.jsonl` and `progress.json`.
        settings: JSON values that identify the run; it is resumed only if they are unchanged.
        samples_per_shard: rows per shard; a resumed run repeats all work since the last finished shard.
        make: maps a sample to the sample to write; None drops it, a PictureError skips it, and any other exception ends
            the run.

    Raises:
        DataError: torchrun started several processes, `out` was begun with other settings, or no picture could be read.
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
                result = make(source[row])
            except PictureError as error:
                skipped.append({"row": row, "reason": str(error)})
            else:
                if result is None:
                    progress.dropped += 1
                elif writer.write(result):
                    _save(out, progress, skipped, row + 1, writer.finished_shards)
            bar.update()
            bar.set_postfix(skipped=len(skipped), refresh=False)
        writer.close()
        _save(out, progress, skipped, progress.rows, writer.finished_shards)
    if progress.rows and progress.skipped == progress.rows:
        raise DataError(f"none of {progress.rows} pictures could be read; first: {skipped[0]['reason']}")
    return progress


def check_finished(folder: str | PathLike[str]) -> None:
    """Check that a folder of shards is complete, if it was written by `fill`.

    Raises:
        DataError: the run has not finished.
    """
    values = (read_json(join(folder, "progress.json")) if holds_shards(folder) else None) or {}
    done, rows = values.get("next_row", 0), values.get("rows", 0)
    if done < rows:
        raise DataError(f"{folder}: {done} of {rows} pictures are done; call what writes it again, so that it finishes")


def check_begun(folder: str | PathLike[str], begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a folder is resumed with the settings it was begun with.

    Args:
        folder: the folder, named in the error.
        begun: the settings that the folder was begun with; missing ones count as None.
        wanted: the settings of the present run.

    Raises:
        DataError: a setting differs; the message names the first.
    """
    for name, now in wanted.items():
        if (was := begun.get(name)) != now:
            differs = f"with {name} = {was!r}, now it is {now!r}"
            if name == "fingerprint":
                differs = "with other pictures, or other files of them"
            raise DataError(f"{folder}: begun {differs}; name another folder")


def check_alone(out: str | PathLike[str]) -> None:
    """Check that this is the only process that writes to `out`.

    Raises:
        DataError: torchrun started several processes.
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
    if begun != wanted and not (progress.shards or holds_shards(out)):  # nothing would be lost
        return Progress(settings=settings, rows=rows)
    check_begun(out, begun, wanted)
    return progress


def _load_skipped(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (read_text(join(out, "skipped.jsonl")) or "").splitlines()]


def _save(out: str, progress: Progress, skipped: list[dict[str, Any]], next_row: int, shards: int) -> None:
    """Record the state on disk: after the shards `skipped.jsonl`, and last `progress.json`, which counts both."""
    progress.next_row, progress.shards = next_row, shards
    progress.skipped = len(skipped)
    progress.kept = next_row - progress.dropped - progress.skipped
    write_text(join(out, "skipped.jsonl"), "".join(json.dumps(entry) + "\n" for entry in skipped))
    write_text(join(out, "progress.json"), json.dumps(asdict(progress), indent=2) + "\n")
