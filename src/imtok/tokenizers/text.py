"""What a tokenizer is told of pictures: captions or classes, as the states of a frozen encoder."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imtok import pretrained
from imtok.config import ConfigError, config
from imtok.data.readers import open_dataset
from imtok.data.sample import Sample
from imtok.data.text_features import distinct_captions, stored_features
from imtok.pretrained.language import TextEncoder

_logger = logging.getLogger(__name__)

Text = tuple[Float[Tensor, "batch text_tokens text_channels"], Bool[Tensor, "batch text_tokens"]]
"""Text states and their mask (True where there is a token)."""
LABELS = "labels"
"""In place of an encoder: pictures are told by their class alone."""


@config
class TextConfig:
    """How a tokenizer hears of a picture's caption (TexTok, section 3.2)."""

    encoder: str = "text_encoder/t5_xl"
    """The frozen network that reads captions, by its name in the registry. "labels": each class is a word of its own,
    without any network (TexTok, Table 4a)."""
    dim: int = 2048
    """Channels of its states; for "labels", the number of classes."""
    classes: tuple[str, ...] = ()
    """For "labels", as the data spell them."""
    template: str | None = None
    """A picture's class in these words, such as "a photo of a {label}", in place of its caption (TexTok, Table 4a)."""
    max_tokens: int = 128
    """Longer captions are cut."""
    sha256: str = ""
    """Of the encoder's weights; training fills it in, so that no other weights of that name are read later."""
    where: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
    """Which halves hear it."""
    how: Literal["in_context", "cross_attention"] = "in_context"
    """As further tokens among the others, or through a cross-attention layer in each block (TexTok, Table 4c)."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.max_tokens < 1 or not self.where:
            raise ConfigError("text: dim and max_tokens must be positive, and where not empty")
        if self.template is not None and (self.encoder == LABELS or self.template.count("{label}") != 1):
            raise ConfigError(f"text: template = {self.template!r} needs {{label}} once, and an encoder that reads it")
        if self.classes and self.encoder != LABELS:
            raise ConfigError(f"text: classes are for the encoder {LABELS!r}; a template takes any class")
        if self.encoder == LABELS and len(self.classes) != self.dim:
            raise ConfigError(f"text: {len(self.classes)} classes are named, but dim is {self.dim}")

    @property
    def conditioned_on(self) -> Literal["captions", "labels"]:
        """What it is told of pictures."""
        return "labels" if self.encoder == LABELS or self.template is not None else "captions"

    def text_of(self, sample: Sample) -> str | None:
        """A picture's class or first caption, whichever it is told; None where the picture has none."""
        return sample.label if self.conditioned_on == "labels" else next(iter(sample.captions), None)

    def with_weights_of(self, other: "TextConfig | None") -> "TextConfig":
        """With the weights that another names of the same encoder, if it names none itself."""
        if self.sha256 or other is None or other.encoder != self.encoder:
            return self
        return dataclasses.replace(self, sha256=other.sha256)

    def same_features_as(self, other: "TextConfig") -> bool:
        """Whether both hear the same states; they may do other things with them."""
        return dataclasses.replace(self, where=other.where, how=other.how) == other


class TextConditioner:
    """Captions to states: from what `imtok embed` has stored, or else from the encoder itself, which is then loaded.

    Args:
        config: of the tokenizer.
        data: folders of shards, with stored features or without.
        device: where the states go, and where the encoder computes.

    Attributes:
        config: of the tokenizer; once it is prepared, with the hash of the encoder's weights.

    Raises:
        ConfigError: stored features are of another width.
        MissingWeights: features of several weights are stored, the config names none of these, and the encoder, whose
            own would be taken, is not here.
    """

    def __init__(
        self, config: TextConfig, data: Sequence[str | PathLike[str]] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self._encoder: TextEncoder | None = None
        # Those that are not stored and were read last: a generator and its tokenizer hear the same, and so do crops. No
        # more than these, since a caption's bits depend on what is read beside it, and that is then the batch alone.
        self._last: dict[str, Float[Tensor, "tokens dim"]] = {}
        self._of_classes: dict[str, Float[Tensor, "tokens dim"]] = {}  # a template's few texts, read once
        self._told_of_cuts = False
        self._data = tuple(data)
        found = [one for folder in self._data for one in stored_features(folder, config.encoder, config.max_tokens)]
        weights = {one.manifest["sha256"] for one in found}
        if config.sha256 == "" and len(weights) == 1:
            self._trust(*weights)
        elif config.sha256 == "" and weights:
            self._load()
        self._stored = [one for one in found if one.manifest["sha256"] == self.config.sha256]
        for stored in self._stored:
            if stored.manifest["dim"] != config.dim:
                raise ConfigError(
                    f"{stored.folder}: of {stored.manifest['dim']} channels, the tokenizer wants {config.dim}"
                )

    def __deepcopy__(self, memo: object) -> "TextConditioner":
        """Copies of a model share it: what it says never changes."""
        return self

    def require_text(self) -> None:
        """Make sure that there is something to learn from: a run without would be one without text, and not say so.

        Raises:
            ConfigError: not one picture of the first folder has a caption, or a class where classes are told.
        """
        training = self._data[0]
        pictures = open_dataset(training).annotations()
        if any(self.config.text_of(sample) is not None for sample in pictures):
            return
        if self.config.conditioned_on == "labels":
            raise ConfigError(f"{training}: the tokenizer hears of classes, and no picture has one")
        raise ConfigError(
            f"{training}: the tokenizer hears of captions, and no picture has one; imtok annotate --captions gives "
            "them some"
        )

    def prepare(self, captions: Iterable[str] | None = None) -> None:
        """Open the encoder now if any caption will need it, so that nothing is found missing later.

        Args:
            captions: that it will be asked for; None: all of the data's.

        Raises:
            ConfigError: an encoder of another width or of other weights, or pictures of a class that is not known.
            MissingWeights: it is not here.
        """
        if self.config.encoder == LABELS:
            if captions is not None:  # of classes they say nothing, and whoever wrote the tokens down knew those
                return
            for label in {sample.label for folder in self._data for sample in open_dataset(folder).annotations()}:
                if label is not None:
                    self._class(label)
            return
        if self.config.template is not None:
            self._load()
            return
        if captions is None:
            captions = (caption for folder in self._data for caption in distinct_captions(folder))
        unread = next((caption for caption in captions if not any(caption in one for one in self._stored)), None)
        if unread is not None:
            try:
                self._load()
            except pretrained.MissingWeights as error:
                where = self._places or "text features"
                raise pretrained.MissingWeights(
                    f"the caption {unread[:40]!r} is not stored beside {where} (imtok embed), and {error}"
                ) from None
            if self._data:
                _logger.warning(
                    "captions are read whenever they come; imtok embed %s --encoder %s --max-tokens %d stores them",
                    self._data[0],
                    self.config.encoder,
                    self.config.max_tokens,
                )

    @torch.no_grad()
    def encode(self, texts: Sequence[str | None]) -> Text:
        """States of each picture's text; a picture without one gets a mask of False.

        Args:
            texts: captions, or classes for "labels" and for a template.

        Raises:
            ConfigError: a class that is not among the config's, or an encoder of another width.
            MissingWeights: a caption that is not stored, and an encoder that is not here.
        """
        if self.config.encoder == LABELS:
            told = [None if label is None else self._class(label) for label in texts]
        elif self.config.template is not None:
            told = [None if label is None else self._in_words(label, self.config.template) for label in texts]
        else:
            told = self._captions(texts)
        length = max([1, *(len(states) for states in told if states is not None)])
        states = torch.zeros(len(told), length, self.config.dim)
        mask = torch.zeros(len(told), length, dtype=torch.bool)
        for row, of_it in enumerate(told):
            if of_it is not None:
                states[row, : len(of_it)] = of_it
                mask[row, : len(of_it)] = True
        return states.to(self.device), mask.to(self.device)

    def check(self, caption: str | None) -> None:
        """Whether a caption that nobody has stored is read to its end.

        Raises:
            ConfigError: it is too long.
            MissingWeights: the encoder is not here.
        """
        if caption is not None and self._is_cut(caption):
            length = self._load().length(caption)
            raise ConfigError(
                f"text {caption[:40]!r}…: {length} tokens, the model hears {self.config.max_tokens}; shorten it"
            )

    def encode_batch(self, captions: Sequence[str | None], labels: Sequence[str | None]) -> Text:
        """`encode` of whichever of a batch's captions and classes it is told."""
        return self.encode(labels if self.config.conditioned_on == "labels" else captions)

    def bits(self, texts: Sequence[str | None]) -> Iterator[float]:
        """Information in what the decoder is told of each picture: 8 bits a byte of UTF-8, or log2 of the classes.

        An upper bound: nobody has compressed the captions. It stands beside the tokens' bits, never in them.
        """
        for text in texts:
            if text is None or "decoder" not in self.config.where:
                yield 0.0
            elif self.config.encoder == LABELS:
                yield math.log2(self.config.dim)
            else:
                yield 8.0 * len(text.encode())

    @property
    def _places(self) -> str:
        return ", ".join(str(folder) for folder in self._data)

    def _trust(self, sha256: str) -> None:
        """One encoder's weights and no others: those of the config, or else the first that are met."""
        if self.config.sha256 not in ("", sha256):
            raise ConfigError(
                f"text: these weights of {self.config.encoder} are not those that the model or its features were made "
                "with"
            )
        self.config = dataclasses.replace(self.config, sha256=sha256)

    def _class(self, label: str) -> Float[Tensor, "1 dim"]:
        if label not in self.config.classes:
            raise ConfigError(f"text: {label!r} is none of the tokenizer's {len(self.config.classes)} classes")
        states = torch.zeros(1, self.config.dim)
        states[0, self.config.classes.index(label)] = 1.0
        return states

    def _in_words(self, label: str, template: str) -> Float[Tensor, "tokens dim"]:
        if label not in self._of_classes:
            (states,) = self._captions([template.replace("{label}", label.replace("_", " "))])
            assert states is not None
            self._of_classes[label] = states
        return self._of_classes[label]

    def _captions(self, captions: Sequence[str | None]) -> list[Float[Tensor, "tokens dim"] | None]:
        known = {caption: self._look_up(caption) for caption in dict.fromkeys(captions)}
        unread = [caption for caption, states in known.items() if caption is not None and states is None]
        if unread and unread != list(self._last):
            self._tell_of_cuts(unread)
            states, mask = self._load().encode(unread, self.config.max_tokens)
            of_each = zip(unread, states.cpu(), mask.cpu(), strict=True)
            self._last = {caption: of_it[there] for caption, of_it, there in of_each}
        known |= {caption: self._last[caption] for caption in unread}
        return [known[caption] for caption in captions]

    def _tell_of_cuts(self, captions: Sequence[str]) -> None:
        """One line about the first that is too long, whatever comes later; of stored ones `embed` has told."""
        long = None if self._told_of_cuts else next(filter(self._is_cut, captions), None)
        if long is not None:
            self._told_of_cuts = True
            _logger.warning(
                "the caption %r… has %d tokens, of which the model hears %d; it and others that are too long are cut",
                long[:40],
                self._load().length(long),
                self.config.max_tokens,
            )

    def _is_cut(self, caption: str) -> bool:
        """Whether a caption that nobody has stored is longer than what is heard of it."""
        if self.config.conditioned_on == "labels" or self._look_up(caption) is not None:
            return False
        return self._load().length(caption) > self.config.max_tokens

    def _look_up(self, caption: str | None) -> Float[Tensor, "tokens dim"] | None:
        found = (stored for stored in self._stored if caption is not None and caption in stored)
        return next((torch.from_numpy(stored.states(caption or "")) for stored in found), None)

    def _load(self) -> TextEncoder:
        if self._encoder is None:
            encoder = pretrained.load(self.config.encoder)
            if not isinstance(encoder, TextEncoder):
                raise ConfigError(f"text: {self.config.encoder} reads no text; imtok weights lists the text encoders")
            if encoder.embed_dim != self.config.dim:
                raise ConfigError(
                    f"text: {self.config.encoder} answers in {encoder.embed_dim} channels, not {self.config.dim}"
                )
            encoder.check_length(self.config.max_tokens)
            self._trust(encoder.sha256)
            self._encoder = encoder.to(self.device)
            return encoder
        return self._encoder
