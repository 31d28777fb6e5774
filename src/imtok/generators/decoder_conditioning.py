"""Which text a tokenizer whose decoder hears captions gets with each generated picture (TexTok, section 3.2)."""

import itertools
from collections.abc import Iterable, Sequence
from os import PathLike

import torch

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError
from imtok.data.unseen_captions import FOLDER, UnseenCaptions, copy_unseen_captions
from imtok.generators.base import Conditions, Generator
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.text import Text, TextConditioner, TextConfig


class DecoderConditioner:
    """A prompt is its own caption; of a class an unseen caption is drawn by the picture's seed.

    Args:
        text_conditioner: of what the tokenizer hears.
        unseen: captions of every class, for a generator that listens to classes and a tokenizer that hears captions.
    """

    def __init__(self, text_conditioner: TextConditioner, unseen: UnseenCaptions | None = None) -> None:
        self.text_conditioner, self.unseen = text_conditioner, unseen

    def prepare(self, captions: Iterable[str]) -> None:
        """Open the text encoder now if it will be needed for these captions or the unseen ones.

        Raises:
            MissingWeights: it is not here.
        """
        self.text_conditioner.prepare(itertools.chain(captions, () if self.unseen is None else self.unseen.captions()))

    def check(self, conditions: Conditions) -> None:
        """Whether all will be heard, and prompts to their ends.

        Raises:
            ConfigError: one is too long.
            MissingWeights: the text encoder is not here.
        """
        self.prepare(())
        if self.unseen is None:
            for condition in conditions:
                self.text_conditioner.check(condition)

    def encode(self, conditions: Conditions, seeds: Sequence[int]) -> Text:
        """What is told of pictures; of a picture of anything, nothing.

        Args:
            conditions: of the pictures, as the data spell them.
            seeds: likewise.

        Raises:
            MissingWeights: the text encoder is not here.
        """
        if self.unseen is None:
            return self.text_conditioner.encode(conditions)
        pairs = zip(conditions, seeds, strict=True)
        return self.text_conditioner.encode(
            [None if label is None else self.unseen.draw(label, seed) for label, seed in pairs]
        )


def wants_unseen_captions(generator: Generator, tokenizer: Tokenizer) -> bool:
    """Whether a class alone does not tell the tokenizer what it wants to hear."""
    heard = _heard_when_drawing(tokenizer)
    return heard is not None and heard.conditioned_on == "captions" and generator.conditioned_on == "labels"


def copy_unseen_captions_to_run(generator: Generator, data: str, folder: RunFolder) -> None:
    """Copy the unseen captions of some shards into a generator's run folder.

    Raises:
        DataError: there are none.
        ConfigError: there are none of one of the generator's classes.
    """
    copy_unseen_captions(data, folder.path / FOLDER)
    there = UnseenCaptions(folder.path / FOLDER).labels
    if missing := sorted(set(generator.config.classes) - set(there)):
        raise ConfigError(f"{data}/{FOLDER}: has no captions of {missing[0]!r}; imtok captions writes them")


def open_decoder_conditioner(
    generator: Generator,
    tokenizer: Tokenizer,
    run: RunFolder,
    data: Sequence[str | PathLike[str]] = (),
    device: torch.device | str = "cpu",
) -> DecoderConditioner | None:
    """A decoder_conditioner for a tokenizer that draws from text; None for any other.

    Args:
        generator: its text_conditioner is shared where both hear the same.
        tokenizer: that draws.
        run: of the generator, with unseen captions where they are wanted.
        data: folders of shards that may have stored text features.
        device: to compute on.

    Raises:
        ConfigError: the tokenizer hears of classes, of which a generator of prompts knows nothing.
        DataError: the run has no unseen captions.
    """
    heard = _heard_when_drawing(tokenizer)
    if heard is None:
        return None
    if heard.conditioned_on == "labels" and generator.conditioned_on == "prompts":
        raise ConfigError(f"{run.path}: its tokenizer draws from classes, and a generator of prompts knows of none")
    unseen = UnseenCaptions(run.path / FOLDER) if wants_unseen_captions(generator, tokenizer) else None
    if generator.text_conditioner is not None and generator.text_conditioner.config.same_features_as(heard):
        return DecoderConditioner(generator.text_conditioner, unseen)
    return DecoderConditioner(TextConditioner(heard, data, device), unseen)


def _heard_when_drawing(tokenizer: Tokenizer) -> TextConfig | None:
    text = tokenizer.text_config
    return text if text is not None and "decoder" in text.where else None
