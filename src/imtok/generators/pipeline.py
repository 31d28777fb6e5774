"""A generator with its tokenizer: labels or prompts in, pictures out."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from imtok.config import ConfigError
from imtok.data.rows import as_unicode
from imtok.generators.base import Conditions, Generator
from imtok.generators.decoder_conditioning import DecoderConditioner
from imtok.generators.sampling import BaseSamplingConfig
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.text import Text


@dataclass(frozen=True, kw_only=True)
class ImageGenerator:
    """Generates pictures.

    Attributes:
        generator: generates codes or latents.
        tokenizer: decodes them.
        sampling: default sampling settings.
        resolution: resolution of the pictures in pixels.
        grid_size: rows and columns of the patches that the tokenizer decodes.
        decoder_conditioner: encoder of the text for a tokenizer whose decoder is conditioned on text; None: it is not.
    """

    generator: Generator
    tokenizer: Tokenizer
    sampling: BaseSamplingConfig
    resolution: int
    grid_size: tuple[int, int]
    decoder_conditioner: DecoderConditioner | None = None

    def generate(
        self,
        labels: str | int | Iterable[Any] | None = None,
        prompts: str | Sequence[str] | None = None,
        *,
        seed: int = 0,
        seeds: Iterable[Any] | None = None,
        progress: Callable[[float], object] = lambda share: None,
        **sampling: Any,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Generate pictures in [-1, 1], one for each label or prompt.

        A picture depends on its condition, its seed and the settings, not on the rest of the batch.

        Args:
            labels: classes by name or number, or a single one, for a class-conditional generator; numbers may be in an
                array or tensor, and None in a list is unconditional.
            prompts: texts, or a single one, for a text-conditional generator.
            seed: seed of the first picture; each further picture has the next number.
            seeds: one seed for each picture, instead of `seed`; may be an array or tensor.
            progress: called repeatedly with the fraction of the work done since the previous call.
            sampling: fields of `SamplingConfig` or `DiffusionSamplingConfig`, such as `guidance_scale=2.0`; the others
                are taken from the attribute `sampling`.

        Raises:
            ConfigError: labels are given to a generator conditioned on prompts or vice versa, a class or setting is
                unknown, a prompt is too long, or the seeds are invalid.
        """
        conditions = self.conditions(labels, prompts)
        try:
            first = operator.index(seed)
            wanted = range(first, first + len(conditions)) if seeds is None else seeds
            numbers = [operator.index(value) for value in wanted]
        except TypeError:
            raise ConfigError("seeds are whole numbers, one for each picture") from None
        if len(numbers) != len(conditions):
            raise ConfigError(f"{len(numbers)} seeds for {len(conditions)} pictures; give one for each")
        if not all(-(2**63) <= number < 2**64 for number in numbers):
            raise ConfigError("seeds have at most 64 bits")
        tokens = self.generator.sample(conditions, numbers, self.settings(**sampling), progress)
        return self.decode(tokens, self.decoder_text(conditions, numbers))

    def decoder_text(self, conditions: Conditions, seeds: Sequence[int]) -> Text | None:
        """Encode the decoder's text for pictures generated from these conditions and seeds; None: it uses no text.

        Raises:
            MissingWeights: the decoder is conditioned on text, but the text encoder's weights are not installed.
        """
        return None if self.decoder_conditioner is None else self.decoder_conditioner.encode(conditions, seeds)

    @torch.no_grad()
    def decode(self, tokens: Num[Tensor, "batch tokens _"], text: Text | None) -> Float[Tensor, "batch 3 height width"]:
        """Decode codes or latents, with the decoder's text, to pictures in [-1, 1].

        Raises:
            ConfigError: the decoder outputs NaN or infinity.
        """
        decode_tokens = self.tokenizer.decode if tokens.is_floating_point() else self.tokenizer.decode_codes
        images = decode_tokens(tokens, text, self.grid_size)
        if not images.isfinite().all():
            raise ConfigError("pictures are NaN or infinite: weights are broken, or guidance is too strong")
        return images[:, :, : self.resolution, : self.resolution].clamp(-1, 1)

    def conditions(
        self, labels: str | int | Iterable[Any] | None, prompts: str | Sequence[str] | None
    ) -> list[str | None]:
        """Return the labels or prompts as the generator's conditions.

        Raises:
            ConfigError: the generator is not conditioned on what is given, nothing is given, a class is unknown, or a
                prompt is too long.
        """
        given = {"labels": labels, "prompts": prompts}
        wanted = self.generator.conditioned_on
        others = [name for name, values in given.items() if values is not None and name != wanted]
        if others or given[wanted] is None:
            raise ConfigError(f"this generator is conditioned on {wanted}{f', not on {others[0]}' if others else ''}")
        conditions = [self.generator.resolve(value) for value in _as_strings(given[wanted])]
        if not conditions:
            raise ConfigError(f"no {wanted} are given")
        if self.decoder_conditioner is not None:
            self.decoder_conditioner.check(conditions)
        return conditions

    def settings(self, **changes: Any) -> BaseSamplingConfig:
        """Return the attribute `sampling` with some fields changed.

        Raises:
            ConfigError: a field is unknown, or its value is invalid.
        """
        settings = self.sampling.replace(**changes)
        self.generator.check_sampling(settings)
        return settings


def _as_strings(values: Any) -> list[str | None]:
    """Return labels or prompts (a single value, several, or an array or tensor of numbers) as strings; None is kept."""
    values = values.tolist() if hasattr(values, "tolist") else values
    several: Iterable[Any] = values if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    plain = [value.item() if hasattr(value, "item") else value for value in several]
    return [None if value is None else as_unicode(value) for value in plain]
