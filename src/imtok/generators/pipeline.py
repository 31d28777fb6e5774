"""A generator and its tokenizer: labels or prompts in, pictures out."""

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
    """Draws pictures.

    Attributes:
        generator: writes codes or latents.
        tokenizer: draws them.
        sampling: how they are written unless it is said otherwise.
        resolution: of the pictures in pixels.
        grid_size: rows and columns of the patches that the tokenizer draws.
        decoder_conditioner: of a tokenizer that draws from captions too.
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
        """Pictures in [-1, 1], one for each label or prompt.

        A picture depends on its condition, its seed and the settings, not on what else is drawn with it.

        Args:
            labels: classes by name or number, for a class-conditional generator, or one; numbers may be an array or
                tensor, and a None among them is any class.
            prompts: for a generator that reads text, or one.
            seed: of the first picture; the others have the numbers after it.
            seeds: one for each picture instead; an array or tensor will do.
            progress: hears every now and then which share of the work has been done since.
            sampling: fields of `SamplingConfig` or `DiffusionSamplingConfig`, such as `guidance_scale=2.0`; the others are the
                preset's.

        Raises:
            ConfigError: labels for a generator of prompts or the other way round, an unknown class, too long
                a prompt, seeds that do not fit, or a setting that does not exist.
        """
        conditions = self.conditions(labels, prompts)
        try:
            first = operator.index(seed)
            wanted = range(first, first + len(conditions)) if seeds is None else seeds
            numbers = [operator.index(one) for one in wanted]
        except TypeError:
            raise ConfigError("seeds are whole numbers, one for each picture") from None
        if len(numbers) != len(conditions):
            raise ConfigError(f"{len(numbers)} seeds for {len(conditions)} pictures; give one for each")
        if not all(-(2**63) <= number < 2**64 for number in numbers):
            raise ConfigError("seeds have at most 64 bits")
        tokens = self.generator.sample(conditions, numbers, self.settings(**sampling), progress)
        return self.decode(tokens, self.decoder_text(conditions, numbers))

    def decoder_text(self, conditions: Conditions, seeds: Sequence[int]) -> Text | None:
        """What the tokenizer hears of pictures that are drawn from these conditions with these seeds.

        Raises:
            MissingWeights: it hears text, and the encoder is not here.
        """
        return None if self.decoder_conditioner is None else self.decoder_conditioner.encode(conditions, seeds)

    @torch.no_grad()
    def decode(self, tokens: Num[Tensor, "batch tokens _"], text: Text | None) -> Float[Tensor, "batch 3 height width"]:
        """What the tokenizer makes of codes or latents, and of what it is told of the pictures.

        Raises:
            ConfigError: NaN or infinity.
        """
        decode_tokens = self.tokenizer.decode if tokens.is_floating_point() else self.tokenizer.decode_codes
        images = decode_tokens(tokens, text, self.grid_size)
        if not images.isfinite().all():
            raise ConfigError("pictures are NaN or infinite: weights are broken, or guidance is too strong")
        return images[:, :, : self.resolution, : self.resolution].clamp(-1, 1)

    def conditions(
        self, labels: str | int | Iterable[Any] | None, prompts: str | Sequence[str] | None
    ) -> list[str | None]:
        """What is to be drawn, as the generator is told.

        Raises:
            ConfigError: not what it listens to, nothing, an unknown class, or a prompt that is too long.
        """
        given = {"labels": labels, "prompts": prompts}
        wanted = self.generator.conditioned_on
        others = [name for name, values in given.items() if values is not None and name != wanted]
        if others or given[wanted] is None:
            raise ConfigError(f"this generator listens to {wanted}{f', not to {others[0]}' if others else ''}")
        conditions = [self.generator.resolve(value) for value in _listed(given[wanted])]
        if not conditions:
            raise ConfigError(f"no {wanted} are given")
        if self.decoder_conditioner is not None:
            self.decoder_conditioner.check(conditions)
        return conditions

    def settings(self, **changes: Any) -> BaseSamplingConfig:
        """The preset's settings with some changed.

        Raises:
            ConfigError: there is no such setting, or it cannot have this value.
        """
        settings = self.sampling.replace(**changes)
        self.generator.check_sampling(settings)
        return settings


def _listed(values: Any) -> list[str | None]:
    """Labels or prompts as texts: one alone, several, or numbers in an array or tensor."""
    values = values.tolist() if hasattr(values, "tolist") else values
    several: Iterable[Any] = values if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    plain = [value.item() if hasattr(value, "item") else value for value in several]
    return [None if value is None else as_unicode(value) for value in plain]
