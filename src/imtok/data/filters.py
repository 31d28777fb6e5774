"""Rules for which annotated pictures are kept, as in `imtok annotate --keep`."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from imtok.data.sample import DataError, Face, Sample, TextRegion

Picture = UInt8[np.ndarray, "h w 3"]
Scorer = Callable[[np.ndarray], float]
"""An aesthetic score of RGB pixels, higher is better (the LAION predictor's runs from 1 to 10)."""
Condition = Callable[[Sample, np.ndarray], bool]


class KeepRules:
    """A filter for annotated pictures: all rules must hold, each of them one or more alternatives joined by `|`.

    * `text`, `face`: the picture has at least one word or face, respectively.
    * `min_word_height=N`: the picture has a word that is at least N pixels high.
    * `min_face=N`: the picture has a face box with both sides at least N pixels.
    * `min_side=N`: the picture's shorter side has at least N pixels.
    * `min_aesthetic=S`: the scorer gives the picture a score of at least S.

    Args:
        rules: such as `("text|face", "min_side=256")`; without rules, every picture is kept.
        scorer: computes the aesthetic score; required by `min_aesthetic`.

    Raises:
        DataError: a rule does not exist, its threshold is not a number, or `min_aesthetic` is used without a scorer.
    """

    def __init__(self, rules: Sequence[str], scorer: Scorer | None = None) -> None:
        self._rules = [[_parse(part.strip(), scorer) for part in rule.split("|")] for rule in rules]

    def __call__(self, sample: Sample, picture: Picture) -> bool:
        """Return whether the picture is kept.

        Raises:
            DataError: a rule needs words or faces, and the sample is not annotated with them.
        """
        return all(any(condition(sample, picture) for condition in rule) for rule in self._rules)


def _parse(condition: str, scorer: Scorer | None) -> Condition:
    name, equals, value = condition.partition("=")
    if condition == "text":
        return lambda sample, _: bool(_words(sample))
    if condition == "face":
        return lambda sample, _: bool(_faces(sample))
    if not equals or name not in ("min_word_height", "min_face", "min_side", "min_aesthetic"):
        known = "text, face, min_word_height=N, min_face=N, min_side=N, min_aesthetic=S"
        raise DataError(f"keep rule {condition!r} does not exist; there are {known}, joined by |")
    try:
        threshold = float(value)
    except ValueError:
        raise DataError(f"keep rule {condition!r}: {value!r} is not a number") from None
    if name == "min_word_height":
        return lambda sample, _: any(word.height >= threshold for word in _words(sample))
    if name == "min_face":
        return lambda sample, _: any(_shorter_side(face) >= threshold for face in _faces(sample))
    if name == "min_side":
        return lambda sample, _: min(sample.width, sample.height) >= threshold
    if scorer is None:
        raise DataError(
            "keep rule min_aesthetic needs an aesthetic scorer; the LAION predictor works on CLIP, which imtok does "
            "not bring: call imtok.data.annotate.annotate_source from Python, with KeepRules(rules, scorer=yours)"
        )
    return lambda _, picture: scorer(picture) >= threshold


def _words(sample: Sample) -> list[TextRegion]:
    if sample.words is None:
        raise DataError(f"{sample.path}: a keep rule asks for words, which nobody has looked for; add --text")
    return sample.words


def _faces(sample: Sample) -> list[Face]:
    if sample.faces is None:
        raise DataError(f"{sample.path}: a keep rule asks for faces, which nobody has looked for; add --faces")
    return sample.faces


def _shorter_side(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return min(x1 - x0, y1 - y0)
