"""What a generated picture was asked to show: its prompt, and the words that shall stand in it."""

import io
import json
import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

from imtok.data.readers import image_of, read_table
from imtok.data.rows import PathLookup, as_unicode, listed_captions
from imtok.data.sample import DataError, Sample
from imtok.generators.generate import SETTINGS

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


@dataclass(frozen=True)
class PromptInfo:
    """As far as it is known: the prompt, the text to be seen, and the run that drew the picture."""

    prompt: str | None = None
    text: str | None = None
    run: str | None = None

    @property
    def group(self) -> str | None:
        """What a bootstrap draws together: pictures of one text, whatever their prompts, or of one prompt."""
        return self.text or self.prompt


class PromptLookup:
    """Looks up what was asked.

    A table's word goes first, then what `imtok generate` has noted in the picture's file, then the first caption. The
    text to be seen is what a prompt has in double quotes, where no table names it.

    Args:
        prompts: a JSONL or CSV table with a picture's file and a `prompt` (or caption).
        words: likewise with a `text`.

    Raises:
        DataError: a table that cannot be read or lacks a column; one line.
    """

    def __init__(self, prompts: str | None = None, words: str | None = None) -> None:
        self._prompts = PathLookup({} if prompts is None else _read(prompts, "prompt"))
        self._words = PathLookup({} if words is None else _read(words, "text"))

    def check(self, sample: Sample) -> None:
        """Before anything is measured.

        Raises:
            DataError: a table means several things for one picture.
        """
        self._prompts.of(sample.path)
        self._words.of(sample.path)

    def of(self, sample: Sample) -> PromptInfo:
        """What was asked of one picture."""
        noted = _noted(sample)
        prompt = self._prompts.of(sample.path) or noted.get("prompt") or next(iter(sample.captions), None)
        text = self._words.of(sample.path) or (None if prompt is None else quoted(prompt))
        return PromptInfo(prompt, text, noted.get("run"))


def quoted(prompt: str) -> str | None:
    """What stands in double quotes, straight or curly; several passages are joined by a space."""
    return " ".join(straight or curly for straight, curly in _QUOTED.findall(prompt)) or None


def _read(table: str, column: str) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for line, row in read_table(table):
            file = image_of(row)
            value = row.get(column) or (next(iter(listed_captions(row)), None) if column == "prompt" else None)
            if file is None or not value:
                raise DataError(f"{table}:{line}: names no {'picture' if file is None else column}")
            if found.setdefault(file, as_unicode(value)) != as_unicode(value):
                raise DataError(f"{table}:{line}: has another {column} for {file}, which is named before")
    except OSError as error:
        raise DataError(f"{table}: {error.strerror or 'cannot be read'}") from None
    return found


def _noted(sample: Sample) -> dict[str, Any]:
    try:
        with Image.open(io.BytesIO(sample.image)) as picture:
            noted = json.loads(picture.info.get(SETTINGS, "{}"))
    except (OSError, ValueError, TypeError, RecursionError):  # no text in this format, or somebody else's
        return {}
    told = noted.items() if isinstance(noted, dict) else ()
    return {name: as_unicode(value) for name, value in told if isinstance(value, str)}
