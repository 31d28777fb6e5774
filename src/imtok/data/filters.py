"""Which annotated pictures are kept: the rules of `imtok annotate --keep`."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from imtok.data.sample import DataError, Face, Sample, TextRegion

Picture = UInt8[np.ndarray, "h w 3"]
Scorer = Callable[[np.ndarray], float]
"""An aesthetic score of RGB pixels, higher is better (the LAION predictor's runs from 1 to 10)."""
Condition = Callable[[Sample, np.ndarray], bool]


class KeepRules:
    """All rules must hold; a rule is one condition, or several joined by `|` of which one must hold.

    * `text`, `face`: the picture has a word, a face.
    * `min_word_height=N`, `min_face=N`: it has a word at least N pixels high, a face with both sides at least N.
    * `min_side=N`: its shorter side has at least N pixels.
    * `min_aesthetic=S`: the scorer gives it at least S.

    Args:
        rules: such as `("text|face", "min_side=256")`; none keeps everything.
        scorer: needed by `min_aesthetic`.

    Raises:
        DataError: a rule that does not exist, a threshold that is no number, or no scorer where one is needed.
    """

    def __init__(self, rules: Sequence[str], scorer: Scorer | None = None) -> None:
        self._rules = [[_parse(part.strip(), scorer) for part in rule.split("|")] for rule in rules]

    def __call__(self, sample: Sample, picture: Picture) -> bool:
        """Whether the picture is kept.

        Raises:
            DataError: a rule asks for words or faces that nobody has looked for.
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
        least = float(value)
    except ValueError:
        raise DataError(f"keep rule {condition!r}: {value!r} is not a number") from None
    if name == "min_word_height":
        return lambda sample, _: any(word.height >= least for word in _words(sample))
    if name == "min_face":
        return lambda sample, _: any(_shorter_side(face) >= least for face in _faces(sample))
    if name == "min_side":
        return lambda sample, _: min(sample.width, sample.height) >= least
    if scorer is None:
        raise DataError(
            "keep rule min_aesthetic needs an aesthetic scorer; the LAION predictor works on CLIP, which imtok does "
            "not bring: call imtok.data.annotate.annotate_source from Python, with KeepRules(rules, scorer=yours)"
        )
    return lambda _, picture: scorer(picture) >= least


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
