"""Task and validation of a generator: its losses on codes or latents, and its samples during training."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from imtok.checkpoints import RunFolder
from imtok.data.token_loader import TokenBatch, fixed_token_batches
from imtok.data.token_shards import TokenShards
from imtok.generators.base import Generator
from imtok.generators.catalog import build
from imtok.generators.decoder_conditioning import DecoderConditioner
from imtok.generators.pipeline import ImageGenerator
from imtok.layers.model import in_eval_mode
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.text import TextConditioner
from imtok.training.checks import check_parts, parts_of
from imtok.training.data_modules import evaluation_batch_size
from imtok.training.previews import PREVIEW_PICTURES, write_preview
from imtok.training.run import GeneratorRunConfig, Phase
from imtok.training.tasks import Losses, Task


class GeneratorTask(Task):
    """A generator that is trained with the mean of its losses.

    Args:
        config: config of the run.
        run: folder of the run, for a generator that loads a language model's tokenizer from it.
        text_conditioner: encodes the prompts, for a generator that receives them through a text encoder.
    """

    players = ("generator",)

    def __init__(
        self, config: GeneratorRunConfig, run: RunFolder | None = None, text_conditioner: TextConditioner | None = None
    ) -> None:
        super().__init__()
        self.generator: Generator = build(config.generator, run, text_conditioner)

    @property
    def model(self) -> Generator:
        """The part that is averaged, saved and evaluated."""
        return self.generator

    def parameters_of(self, player: str) -> list[nn.Parameter]:
        return list(self.generator.parameters())

    def prepare(self, phases: Sequence[Phase], device: torch.device) -> None:
        check_parts(self.generator, phases)
        self.to(device)

    def start_phase(self, phase: Phase) -> None:
        for name, part in parts_of(self.generator):
            part.requires_grad_(phase.trains_part(name))

    def losses(self, batch: TokenBatch, player: str, step: int) -> Losses:
        return self.generator.losses(batch.tokens, conditions(self.generator, batch))

    def weight(self, term: str) -> float:
        return 1 / len(self.generator.loss_names)

    def after_step(self) -> dict[str, float]:
        return {}


class GeneratorValidation:
    """Scores of a generator on held-out codes or latents, and samples for their labels or prompts.

    Args:
        config: config of the run.
        shards: tokens of held-out pictures, or of the training pictures if there are none.
        held_out: whether the pictures are held out, so that scores on them are meaningful.
        tokenizer: decodes the tokens.
        decoder_conditioner: for a tokenizer whose decoder is conditioned on text.
    """

    def __init__(
        self,
        config: GeneratorRunConfig,
        shards: TokenShards,
        held_out: bool,
        tokenizer: Tokenizer,
        decoder_conditioner: DecoderConditioner | None = None,
    ) -> None:
        self.config, self.shards, self.held_out = config, shards, held_out
        self.tokenizer, self.decoder_conditioner = tokenizer, decoder_conditioner

    @torch.no_grad()
    def evaluate(self, generator: Generator, device: torch.device) -> dict[str, float]:
        """Return the generator's scores, averaged over pictures; names with `_untold` are without labels or prompts.

        A generator whose scores are no better with the conditions than without has not learned to use them.
        """
        settings = self.config.training
        size = evaluation_batch_size(settings)
        sums, count = defaultdict[str, float](float), 0
        with in_eval_mode(generator):
            for batch in fixed_token_batches(self.shards, count=settings.evaluation_pictures, batch_size=size):
                tokens, seeds = batch.tokens.to(device), range(count, count + len(batch))
                for suffix, batch_conditions in (("", conditions(generator, batch)), ("_untold", [None] * len(batch))):
                    for name, scores in generator.scores(tokens, batch_conditions, seeds).items():
                        sums[name + suffix] += scores.cpu().double().sum().item()
                count += len(batch)
        return {name: total / count for name, total in sums.items()}

    @torch.no_grad()
    def preview(self, generator: Generator, folder: Path, step: int, device: torch.device) -> Path:
        """Write some decoded originals, and samples for their labels or prompts, as RUN/previews/step-00001234.png.

        With sharded weights all ranks must call this; the first one writes.
        """
        batch = next(fixed_token_batches(self.shards, count=PREVIEW_PICTURES, batch_size=PREVIEW_PICTURES))
        reference = self.config.tokenizer
        assert reference is not None
        pipeline = ImageGenerator(
            generator=generator,
            tokenizer=self.tokenizer.to(device),
            sampling=self.config.sampling,
            resolution=reference.resolution,
            grid_size=reference.grid_size,
            decoder_conditioner=self.decoder_conditioner,
        )
        batch_conditions, seeds = conditions(generator, batch), range(len(batch))
        with in_eval_mode(generator):
            tokens = generator.sample(batch_conditions, seeds, self.config.sampling)
        originals_text = (
            None
            if self.decoder_conditioner is None
            else self.decoder_conditioner.text_conditioner.encode_batch(batch.captions, batch.labels)
        )
        originals = pipeline.decode(batch.tokens.to(device), originals_text)
        samples = pipeline.decode(tokens, pipeline.decoder_text(batch_conditions, seeds))
        return write_preview([originals, samples], folder, step)


def conditions(generator: Generator, batch: TokenBatch) -> list[str | None]:
    """Return the labels or captions of a batch, whichever the generator is conditioned on."""
    return batch.labels if generator.conditioned_on == "labels" else batch.captions
