"""A generator and its tokenizer: labels or prompts in, pictures out."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imtok.config import ConfigError
from imtok.generators.base import Generator
from imtok.generators.sampling import SamplingConfig
from imtok.tokenizers.base import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ImageGenerator:
    """Draws pictures.

    Attributes:
        generator: writes codes.
        tokenizer: draws them.
        sampling: how codes are drawn unless it is said otherwise.
        resolution: of the pictures in pixels.
        grid_size: rows and columns of the patches that the tokenizer draws.
    """

    generator: Generator
    tokenizer: Tokenizer
    sampling: SamplingConfig
    resolution: int
    grid_size: tuple[int, int]

    def generate(
        self,
        labels: Sequence[str | int | None] | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        progress: Callable[[], object] = lambda: None,
        **sampling: Any,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pictures in [-1, 1], one for each label or prompt.

        A picture depends on its condition, its seed and the settings, not on what else is drawn with it.

        Args:
            labels: classes by name or number, for a class-conditional generator; None: any.
            prompts: for a generator that reads text.
            seed: of the first picture; the others have the numbers after it.
            seeds: one for each picture instead.
            progress: called after every place of the pictures.
            sampling: fields of `SamplingConfig`, such as `guidance_scale=2.0`; the others are the preset's.

        Raises:
            ConfigError: labels for a generator of prompts or the other way round, an unknown class, or a setting that
                does not exist.
        """
        conditions = self.conditions(labels, prompts)
        numbers = list(range(seed, seed + len(conditions))) if seeds is None else list(seeds)
        codes = self.generator.sample(conditions, numbers, self.settings(**sampling), progress)
        return self.draw(codes)

    @torch.no_grad()
    def draw(self, codes: Int[Tensor, "batch tokens codebooks"]) -> Float[Tensor, "batch 3 height width"]:
        """What the tokenizer makes of codes."""
        images = self.tokenizer.decode_codes(codes, grid_size=self.grid_size)
        return images[:, :, : self.resolution, : self.resolution].clamp(-1, 1)

    def conditions(self, labels: Sequence[str | int | None] | None, prompts: Sequence[str] | None) -> list[str | None]:
        """What is to be drawn, as the generator is told.

        Raises:
            ConfigError: not what it listens to, an unknown class, or a prompt that is too long.
        """
        given = {"labels": labels, "prompts": prompts}
        wanted = self.generator.listens_to
        others = [name for name, values in given.items() if values is not None and name != wanted]
        if others or given[wanted] is None:
            raise ConfigError(f"this generator listens to {wanted}{f', not to {others[0]}' if others else ''}")
        told = [None if value is None else str(value) for value in given[wanted] or ()]
        for condition in set(told):
            self.generator.check(condition)
        return told

    def settings(self, **changes: Any) -> SamplingConfig:
        """The preset's settings with some changed.

        Raises:
            ConfigError: there is no such setting, or it cannot have this value.
        """
        scale = changes.get("guidance_scale")
        if isinstance(scale, int | float):
            changes["guidance_scale"] = (float(scale),)
        names = {field.name for field in dataclasses.fields(SamplingConfig)}
        if unknown := changes.keys() - names:
            raise ConfigError(f"no setting of sampling is called {min(unknown)}; there are {', '.join(sorted(names))}")
        settings = dataclasses.replace(self.sampling, **changes)
        codebooks = len(self.generator.codebook_sizes)
        if len(settings.guidance_scale) not in (1, codebooks):
            raise ConfigError(f"{len(settings.guidance_scale)} guidance scales for {codebooks} codebooks")
        return settings
