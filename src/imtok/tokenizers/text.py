"""Text conditioning of tokenizers and generators: captions or classes as states of a frozen text encoder."""

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
"""Value of `TextConfig.encoder` for conditioning on the class alone, without a text encoder."""


@config
class TextConfig:
    """How a model is conditioned on a picture's caption or class (TexTok, section 3.2)."""

    encoder: str = "text_encoder/t5_xl"
    """Registry name of the frozen text encoder. "labels": each class is one one-hot text token, without any network
    (TexTok, Table 4a)."""
    dim: int = 2048
    """Channels of the text states; for "labels", the number of classes."""
    classes: tuple[str, ...] = ()
    """For "labels": the class names, as spelled in the data."""
    template: str | None = None
    """Text with the picture's class, such as "a photo of a {label}", in place of its caption (TexTok, Table 4a)."""
    max_tokens: int = 128
    """Maximum number of text tokens; longer captions are truncated."""
    sha256: str = ""
    """Hash of the encoder's weights; set in training, so that other weights of the same name are rejected later."""
    where: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
    """Which halves of the tokenizer are conditioned on the text."""
    how: Literal["in_context", "cross_attention"] = "in_context"
    """As additional tokens of the sequence, or through a cross-attention layer in each block (TexTok, Table 4c)."""

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
        """Whether the model is conditioned on captions or on classes."""
        return "labels" if self.encoder == LABELS or self.template is not None else "captions"

    def text_of(self, sample: Sample) -> str | None:
        """Return a picture's class or first caption, depending on `conditioned_on`; None if it has none."""
        return sample.label if self.conditioned_on == "labels" else next(iter(sample.captions), None)

    def with_weights_of(self, other: "TextConfig | None") -> "TextConfig":
        """Return this config with the weights' hash of another config of the same encoder, if it has none itself."""
        if self.sha256 or other is None or other.encoder != self.encoder:
            return self
        return dataclasses.replace(self, sha256=other.sha256)

    def same_features_as(self, other: "TextConfig") -> bool:
        """Return whether both configs use the same text states; `where` and `how` may differ."""
        return dataclasses.replace(self, where=other.where, how=other.how) == other


class TextConditioner:
    """Text states of captions: read from the features that `imtok embed` has stored, or else computed by the encoder.

    The encoder is loaded only when it is needed.

    Args:
        config: text config of the tokenizer or generator.
        data: folders of shards, with or without stored features.
        device: device of the encoder and of the returned states.

    Attributes:
        config: text config of the model, with the hash of the encoder's weights as soon as it is known.

    Raises:
        ConfigError: stored features have another number of channels.
        MissingWeights: features of several weights are stored, the config has the hash of none of them, and the
            encoder, whose weights would then be used, is not available.
    """

    def __init__(
        self, config: TextConfig, data: Sequence[str | PathLike[str]] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self._encoder: TextEncoder | None = None
        # States of the captions encoded last, as far as they are not stored: a generator and its tokenizer, or several
        # crops, use the same captions. Older states are not cached: their rounding depends on the other captions in the
        # encoder's batch, and the result must depend on the current batch alone.
        self._last: dict[str, Float[Tensor, "tokens dim"]] = {}
        self._template_states: dict[str, Float[Tensor, "tokens dim"]] = {}  # by class, encoded once
        self._warned_of_truncation = False
        self._data = tuple(data)
        found = [each for folder in self._data for each in stored_features(folder, config.encoder, config.max_tokens)]
        weights = {stored.manifest["sha256"] for stored in found}
        if config.sha256 == "" and len(weights) == 1:
            self._pin_weights(*weights)
        elif config.sha256 == "" and weights:
            self._load()
        self._stored = [stored for stored in found if stored.manifest["sha256"] == self.config.sha256]
        for stored in self._stored:
            if stored.manifest["dim"] != config.dim:
                raise ConfigError(
                    f"{stored.folder}: of {stored.manifest['dim']} channels, the tokenizer wants {config.dim}"
                )

    def __deepcopy__(self, memo: object) -> "TextConditioner":
        """Return itself: copies of a model share the conditioner, whose output never changes."""
        return self

    def require_text(self) -> None:
        """Check that the training data has text, since a run without any would silently train without conditioning.

        Raises:
            ConfigError: no picture of the first folder has a caption, or a class if the model is conditioned on these.
        """
        training = self._data[0]
        pictures = open_dataset(training).annotations()
        if any(self.config.text_of(sample) is not None for sample in pictures):
            return
        if self.config.conditioned_on == "labels":
            raise ConfigError(f"{training}: the tokenizer is conditioned on classes, and no picture has one")
        raise ConfigError(
            f"{training}: the tokenizer is conditioned on captions, and no picture has one; imtok annotate --captions "
            "gives them some"
        )

    def prepare(self, captions: Iterable[str] | None = None) -> None:
        """Load the encoder now if any caption will need it, so that missing weights are found before they are needed.

        Args:
            captions: the captions that will be encoded; None: all captions of the data.

        Raises:
            ConfigError: the encoder has another number of channels or other weights, or a picture's class is unknown.
            MissingWeights: the encoder is needed and not available.
        """
        if self.config.encoder == LABELS:
            if captions is not None:  # not classes; `imtok encode` has checked those of token shards
                return
            for label in {sample.label for folder in self._data for sample in open_dataset(folder).annotations()}:
                if label is not None:
                    self._one_hot(label)
            return
        if self.config.template is not None:
            self._load()
            return
        if captions is None:
            captions = (caption for folder in self._data for caption in distinct_captions(folder))
        unread = next((caption for caption in captions if not any(caption in stored for stored in self._stored)), None)
        if unread is not None:
            try:
                self._load()
            except pretrained.MissingWeights as error:
                where = self._folders or "text features"
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
        """Return the states and mask of each picture's text; the mask of a picture without text is False.

        Args:
            texts: captions, or classes for "labels" and for a template.

        Raises:
            ConfigError: a class is not among those of the config, or the encoder has another number of channels.
            MissingWeights: a caption is not stored, and the encoder is not available.
        """
        if self.config.encoder == LABELS:
            encoded = [None if label is None else self._one_hot(label) for label in texts]
        elif self.config.template is not None:
            encoded = [None if label is None else self._from_template(label, self.config.template) for label in texts]
        else:
            encoded = self._captions(texts)
        length = max([1, *(len(states) for states in encoded if states is not None)])
        states = torch.zeros(len(encoded), length, self.config.dim)
        mask = torch.zeros(len(encoded), length, dtype=torch.bool)
        for row, text_states in enumerate(encoded):
            if text_states is not None:
                states[row, : len(text_states)] = text_states
                mask[row, : len(text_states)] = True
        return states.to(self.device), mask.to(self.device)

    def check(self, caption: str | None) -> None:
        """Check that a caption without stored features will not be truncated.

        Raises:
            ConfigError: the caption is too long.
            MissingWeights: the encoder is not available.
        """
        if caption is not None and self._is_truncated(caption):
            length = self._load().length(caption)
            raise ConfigError(
                f"text {caption[:40]!r}…: {length} tokens, the model reads {self.config.max_tokens}; shorten it"
            )

    def encode_batch(self, captions: Sequence[str | None], labels: Sequence[str | None]) -> Text:
        """Encode a batch's captions or classes, depending on `conditioned_on`."""
        return self.encode(labels if self.config.conditioned_on == "labels" else captions)

    def bits(self, texts: Sequence[str | None]) -> Iterator[float]:
        """Yield the information in each text that the decoder receives, in bits.

        This is 8 bits per byte of UTF-8, or log2 of the number of classes. It is an upper bound, as captions are not
        compressed, and is therefore reported separately from the bits of the tokens.
        """
        for text in texts:
            if text is None or "decoder" not in self.config.where:
                yield 0.0
            elif self.config.encoder == LABELS:
                yield math.log2(self.config.dim)
            else:
                yield 8.0 * len(text.encode())

    @property
    def _folders(self) -> str:
        return ", ".join(str(folder) for folder in self._data)

    def _pin_weights(self, sha256: str) -> None:
        """Check the encoder's weights against the hash in the config, or store their hash if it has none."""
        if self.config.sha256 not in ("", sha256):
            raise ConfigError(
                f"text: these weights of {self.config.encoder} are not those that the model or its features were made "
                "with"
            )
        self.config = dataclasses.replace(self.config, sha256=sha256)

    def _one_hot(self, label: str) -> Float[Tensor, "1 dim"]:
        if label not in self.config.classes:
            raise ConfigError(f"text: {label!r} is none of the tokenizer's {len(self.config.classes)} classes")
        states = torch.zeros(1, self.config.dim)
        states[0, self.config.classes.index(label)] = 1.0
        return states

    def _from_template(self, label: str, template: str) -> Float[Tensor, "tokens dim"]:
        if label not in self._template_states:
            (states,) = self._captions([template.replace("{label}", label.replace("_", " "))])
            assert states is not None
            self._template_states[label] = states
        return self._template_states[label]

    def _captions(self, captions: Sequence[str | None]) -> list[Float[Tensor, "tokens dim"] | None]:
        known = {caption: self._stored_states(caption) for caption in dict.fromkeys(captions)}
        unread = [caption for caption, states in known.items() if caption is not None and states is None]
        if unread and unread != list(self._last):
            self._warn_of_truncation(unread)
            states, mask = self._load().encode(unread, self.config.max_tokens)
            encoded = zip(unread, states.cpu(), mask.cpu(), strict=True)
            self._last = {caption: padded[valid] for caption, padded, valid in encoded}
        known |= {caption: self._last[caption] for caption in unread}
        return [known[caption] for caption in captions]

    def _warn_of_truncation(self, captions: Sequence[str]) -> None:
        """Warn once, of the first caption that is too long; for stored captions `embed` has already warned."""
        long = None if self._warned_of_truncation else next(filter(self._is_truncated, captions), None)
        if long is not None:
            self._warned_of_truncation = True
            _logger.warning(
                "the caption %r… has %d tokens, of which the model reads %d; it and others that are too long are cut",
                long[:40],
                self._load().length(long),
                self.config.max_tokens,
            )

    def _is_truncated(self, caption: str) -> bool:
        """Return whether a caption without stored features has more than `max_tokens` tokens."""
        if self.config.conditioned_on == "labels" or self._stored_states(caption) is not None:
            return False
        return self._load().length(caption) > self.config.max_tokens

    def _stored_states(self, caption: str | None) -> Float[Tensor, "tokens dim"] | None:
        found = (stored for stored in self._stored if caption is not None and caption in stored)
        return next((torch.from_numpy(stored.states(caption or "")) for stored in found), None)

    def _load(self) -> TextEncoder:
        if self._encoder is None:
            encoder = pretrained.load(self.config.encoder)
            if not isinstance(encoder, TextEncoder):
                raise ConfigError(f"text: {self.config.encoder} reads no text; imtok weights lists the text encoders")
            if encoder.embed_dim != self.config.dim:
                raise ConfigError(
                    f"text: {self.config.encoder} has {encoder.embed_dim} channels, not {self.config.dim}"
                )
            encoder.check_length(self.config.max_tokens)
            self._pin_weights(encoder.sha256)
            self._encoder = encoder.to(self.device)
            return encoder
        return self._encoder
