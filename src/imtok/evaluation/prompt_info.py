"""What a generated picture should show: its prompt, and the text that should appear in it."""

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
    """What is known about the generation of a picture.

    Attributes:
        prompt: its prompt; None if unknown.
        text: the text that it should show; None without one.
        run: name or path of the run that generated it; None if unknown.
    """

    prompt: str | None = None
    text: str | None = None
    run: str | None = None

    @property
    def group(self) -> str | None:
        """Key of the group that the bootstrap resamples as a whole: the text, or without one the prompt."""
        return self.text or self.prompt


class PromptLookup:
    """Looks up the prompt and the expected text of a picture.

    The prompt is taken from the table if it lists the picture, otherwise from the settings that `imtok generate` stores
    in the picture's file, otherwise it is the first caption. If no table gives the expected text, it is the part of the
    prompt in double quotes.

    Args:
        prompts: a JSONL or CSV table of picture files with their `prompt` (or caption).
        words: a JSONL or CSV table of picture files with their expected `text`.

    Raises:
        DataError: a table cannot be read, lacks a column, or has contradicting rows (one-line message).
    """

    def __init__(self, prompts: str | None = None, words: str | None = None) -> None:
        self._prompts = PathLookup({} if prompts is None else _read_column(prompts, "prompt"))
        self._words = PathLookup({} if words is None else _read_column(words, "text"))

    def check(self, sample: Sample) -> None:
        """Check that the tables are unambiguous for a picture.

        Raises:
            DataError: several rows of a table match the picture, with different values.
        """
        self._prompts.of(sample.path)
        self._words.of(sample.path)

    def of(self, sample: Sample) -> PromptInfo:
        """Return the prompt information of a picture."""
        settings = _stored_settings(sample)
        prompt = self._prompts.of(sample.path) or settings.get("prompt") or next(iter(sample.captions), None)
        text = self._words.of(sample.path) or (None if prompt is None else quoted(prompt))
        return PromptInfo(prompt, text, settings.get("run"))


def quoted(prompt: str) -> str | None:
    """Return the text in double quotes, straight or curly; several passages are joined by a space; None without any."""
    return " ".join(straight or curly for straight, curly in _QUOTED.findall(prompt)) or None


def _read_column(table: str, column: str) -> dict[str, str]:
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


def _stored_settings(sample: Sample) -> dict[str, Any]:
    try:
        with Image.open(io.BytesIO(sample.image)) as picture:
            settings = json.loads(picture.info.get(SETTINGS, "{}"))
    except (OSError, ValueError, TypeError, RecursionError):  # not readable, or the text of another program
        return {}
    items = settings.items() if isinstance(settings, dict) else ()
    return {name: as_unicode(value) for name, value in items if isinstance(value, str)}
