"""A control: a tokenizer that is told of every picture what is known of another."""

from collections.abc import Sequence

from imtok.data.sample import Sample
from imtok.evaluation.reconstructors import DatasetPreview, TokenizerReconstructor


class WrongCaptions(TokenizerReconstructor):
    """A tokenizer that is told of every picture what is known of another: how much does it take from captions?

    That is the last picture before it of which something else is known, or where there is none, the next. It is
    compared with the same tokenizer that is told what is right.
    """

    def __init__(self, right: TokenizerReconstructor) -> None:
        super().__init__(f"{right.name}, wrong captions", right.tokenizer, right.teachers, sha256=right.sha256)
        self.text_conditioner, self.compared_with = right.text_conditioner, right.name
        # By path and what is right: a path may stand there twice.
        self._wrong: dict[tuple[str, str | None], str | None] = {}

    def begin(self, pictures: DatasetPreview) -> None:
        right = [(sample.path, self.text_of(sample)) for sample in pictures.samples()]
        self._wrong = dict(zip(right, wrong_for([known for _, known in right]), strict=True))

    def texts_for(self, samples: Sequence[Sample]) -> Sequence[str | None]:
        return [self._wrong[sample.path, self.text_of(sample)] for sample in samples]


def wrong_for(known: Sequence[str | None]) -> list[str | None]:
    """For each picture, what is known of the latest one before it of which something else is known.

    Where there is none before it, that of the next.
    """
    first = [one for one in dict.fromkeys(known) if one is not None][:2]  # of these one differs, whatever comes
    before: list[str | None] = []  # the last two that differ, the newest first
    wrong: list[str | None] = []
    for right in known:
        wrong.append(next((other for other in [*before, *first] if other != right), None))
        if right is not None:
            before = [right, *(other for other in before if other != right)][:2]
    return wrong
