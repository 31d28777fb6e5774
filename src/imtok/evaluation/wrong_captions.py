"""A control experiment: a tokenizer that is conditioned on the captions of other pictures."""

from collections.abc import Sequence

from imtok.data.sample import Sample
from imtok.evaluation.reconstructors import DatasetPreview, TokenizerReconstructor


class WrongCaptions(TokenizerReconstructor):
    """A tokenizer that is given the text of another picture, to measure how much it depends on its text condition.

    The text is that of the nearest preceding picture whose text differs, or if there is none, of the next such picture.
    The result is compared with that of the same tokenizer with the right texts.
    """

    def __init__(self, right: TokenizerReconstructor) -> None:
        super().__init__(f"{right.name}, wrong captions", right.tokenizer, right.teachers, sha256=right.sha256)
        self.text_conditioner, self.compared_with = right.text_conditioner, right.name
        # Keyed by path and right text, since a path may occur twice in a set.
        self._wrong: dict[tuple[str, str | None], str | None] = {}

    def begin(self, pictures: DatasetPreview) -> None:
        keys = [(sample.path, self.text_of(sample)) for sample in pictures.samples()]
        self._wrong = dict(zip(keys, wrong_for([text for _, text in keys]), strict=True))

    def texts_for(self, samples: Sequence[Sample]) -> Sequence[str | None]:
        return [self._wrong[sample.path, self.text_of(sample)] for sample in samples]


def wrong_for(known: Sequence[str | None]) -> list[str | None]:
    """Return for each picture the text of the nearest preceding picture whose text differs.

    If there is no such picture, return that of the next picture whose text differs, or None.

    Args:
        known: caption or class of each picture; None for a picture without one.
    """
    first = [text for text in dict.fromkeys(known) if text is not None][:2]  # one of these two differs from any text
    before: list[str | None] = []  # the last two distinct texts, the latest first
    wrong: list[str | None] = []
    for right in known:
        wrong.append(next((other for other in [*before, *first] if other != right), None))
        if right is not None:
            before = [right, *(other for other in before if other != right)][:2]
    return wrong
