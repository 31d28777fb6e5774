"""Text conditioning of the tokenizer's decoder for generated pictures (TexTok, section 3.2)."""

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
    """Encodes the text that a tokenizer's decoder is conditioned on for each generated picture.

    A prompt is its own caption. For a class, the picture's seed selects one of the class's unseen captions.

    Args:
        text_conditioner: encoder of the tokenizer's text.
        unseen: captions of every class, for a generator conditioned on classes and a tokenizer conditioned on captions.
    """

    def __init__(self, text_conditioner: TextConditioner, unseen: UnseenCaptions | None = None) -> None:
        self.text_conditioner, self.unseen = text_conditioner, unseen

    def prepare(self, captions: Iterable[str]) -> None:
        """Load the text encoder now if these captions or the unseen ones need it.

        Raises:
            MissingWeights: the text encoder's weights are not installed.
        """
        self.text_conditioner.prepare(itertools.chain(captions, () if self.unseen is None else self.unseen.captions()))

    def check(self, conditions: Conditions) -> None:
        """Check that the text encoder is available if it is needed, and that no prompt would be truncated.

        Raises:
            ConfigError: a prompt is too long.
            MissingWeights: the text encoder's weights are not installed.
        """
        self.prepare(())
        if self.unseen is None:
            for condition in conditions:
                self.text_conditioner.check(condition)

    def encode(self, conditions: Conditions, seeds: Sequence[int]) -> Text:
        """Encode the text of each picture; a picture without a condition gets no text.

        Args:
            conditions: conditions of the pictures, as the dataset spells them.
            seeds: one seed for each picture.

        Raises:
            MissingWeights: the text encoder's weights are not installed.
        """
        if self.unseen is None:
            return self.text_conditioner.encode(conditions)
        pairs = zip(conditions, seeds, strict=True)
        return self.text_conditioner.encode(
            [None if label is None else self.unseen.draw(label, seed) for label, seed in pairs]
        )


def wants_unseen_captions(generator: Generator, tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer's decoder is conditioned on captions, but the generator on classes."""
    text = _decoder_text_config(tokenizer)
    return text is not None and text.conditioned_on == "captions" and generator.conditioned_on == "labels"


def copy_unseen_captions_to_run(generator: Generator, data: str, folder: RunFolder) -> None:
    """Copy the unseen captions of picture shards into a generator's run folder.

    Raises:
        DataError: the shards have none.
        ConfigError: a class of the generator has none.
    """
    copy_unseen_captions(data, folder.path / FOLDER)
    available = UnseenCaptions(folder.path / FOLDER).labels
    if missing := sorted(set(generator.config.classes) - set(available)):
        raise ConfigError(f"{data}/{FOLDER}: has no captions of {missing[0]!r}; imtok captions writes them")


def open_decoder_conditioner(
    generator: Generator,
    tokenizer: Tokenizer,
    run: RunFolder,
    data: Sequence[str | PathLike[str]] = (),
    device: torch.device | str = "cpu",
) -> DecoderConditioner | None:
    """Create the conditioner of a tokenizer whose decoder is conditioned on text; None for any other tokenizer.

    Args:
        generator: the generator; its text conditioner is reused if both need the same text features.
        tokenizer: the tokenizer that decodes the generator's codes or latents.
        run: folder of the generator's run, with unseen captions if they are needed.
        data: folders of shards that may have stored text features.
        device: device of the text encoder.

    Raises:
        ConfigError: the tokenizer's decoder is conditioned on classes, but the generator on prompts.
        DataError: unseen captions are needed, but the run has none.
    """
    text = _decoder_text_config(tokenizer)
    if text is None:
        return None
    if text.conditioned_on == "labels" and generator.conditioned_on == "prompts":
        raise ConfigError(f"{run.path}: its tokenizer draws from classes, and a generator of prompts knows of none")
    unseen = UnseenCaptions(run.path / FOLDER) if wants_unseen_captions(generator, tokenizer) else None
    if generator.text_conditioner is not None and generator.text_conditioner.config.same_features_as(text):
        return DecoderConditioner(generator.text_conditioner, unseen)
    return DecoderConditioner(TextConditioner(text, data, device), unseen)


def _decoder_text_config(tokenizer: Tokenizer) -> TextConfig | None:
    text = tokenizer.text_config
    return text if text is not None and "decoder" in text.where else None
