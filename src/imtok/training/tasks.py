"""Tasks: models with their losses, which the trainer optimizes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imtok.config import ConfigError
from imtok.data.loader import Batch
from imtok.layers.model import Model
from imtok.losses.adversarial import LeCAM, discriminator_loss, generator_loss, r1_penalty
from imtok.losses.discriminators import build_discriminator
from imtok.losses.reconstruction import l1, l2, perceptual_distance
from imtok.losses.regions import face_loss, text_loss
from imtok.losses.representation import RepresentationHead, representation_loss
from imtok.pretrained import FeatureNetwork, FrozenNetwork
from imtok.pretrained.language import TextEncoder
from imtok.tokenizers.base import Encoding, Tokenizer
from imtok.tokenizers.catalog import build
from imtok.tokenizers.text import TextConditioner
from imtok.training.checks import (
    OF_CODES,
    check_losses,
    check_parts,
    is_weighted,
    load_networks,
    load_target,
    parts_of,
    weights_of,
)
from imtok.training.run import Phase, RunConfig

Losses = dict[str, Float[Tensor, ""]]


class Task(nn.Module, ABC):
    """Interface of a model with its losses; its module state is all that exact resume needs from it.

    Attributes:
        players: names of the parts that have an optimizer each, in the order in which their losses are computed.
    """

    players: tuple[str, ...]

    @property
    @abstractmethod
    def model(self) -> Model:
        """The part that is averaged, saved and evaluated."""

    @abstractmethod
    def parameters_of(self, player: str) -> list[nn.Parameter]:
        """Return all parameters that the player trains in any phase, in a fixed order."""

    @abstractmethod
    def prepare(self, phases: Sequence[Phase], device: torch.device) -> None:
        """Move to the device and load all that any phase needs, so that nothing is found missing during training."""

    @abstractmethod
    def start_phase(self, phase: Phase) -> None:
        """Freeze and unfreeze parts, and set the weights of losses, as the phase defines."""

    @abstractmethod
    def losses(self, batch: Any, /, player: str, step: int) -> Losses:
        """Return the unweighted losses of one micro-batch, by name; empty if the player does not train in this step."""

    @abstractmethod
    def weight(self, term: str) -> float:
        """Return the weight of a loss term in the current phase."""

    @abstractmethod
    def after_step(self) -> dict[str, float]:
        """Do the updates without gradient, once per optimizer step; return numbers to log."""


@runtime_checkable
class Evaluator(Protocol):
    """Evaluates a task's model during training.

    Attributes:
        held_out: whether its pictures are not training pictures, so that scores are meaningful.
    """

    held_out: bool

    def evaluate(self, model: Any, /, device: torch.device) -> dict[str, float]:
        """Return scores by name."""
        ...

    def preview(self, model: Any, /, folder: Path, step: int, device: torch.device) -> Path:
        """Write a picture that shows the progress of the model."""
        ...


class TokenizerTask(Task):
    """A tokenizer with its losses and, if these include the adversarial loss, a discriminator.

    Both players use the same reconstruction: the discriminator receives the detached output of the tokenizer, and both
    make their steps afterwards.

    Args:
        config: config of the run.
        text_conditioner: encodes the text for a tokenizer that is conditioned on it; None: no text is given.
    """

    players = ("tokenizer", "discriminator")

    def __init__(self, config: RunConfig, text_conditioner: TextConditioner | None = None) -> None:
        super().__init__()
        self.config, self.text_conditioner = config, text_conditioner
        self.tokenizer: Tokenizer = build(config.tokenizer)
        self.discriminator = build_discriminator(config.discriminator)
        self.lecam = LeCAM()
        self.heads = nn.ModuleList(self._representation_heads())
        self._weights = config.losses.weights()
        self._targets: list[FrozenNetwork] = []
        self._networks: dict[str, FeatureNetwork] = {}  # a plain dict: they are not part of the state
        self._reconstructions: Tensor | None = None
        self._target_counts: list[list[Tensor]] = [[] for _ in self.heads]  # embedded pictures, by target and pass

    @property
    def model(self) -> Tokenizer:
        """The part that is averaged, saved and evaluated."""
        return self.tokenizer

    def parameters_of(self, player: str) -> list[nn.Parameter]:
        if player == "discriminator":
            return list(self.discriminator.parameters())
        return [*self.tokenizer.parameters(), *self.heads.parameters()]

    def prepare(self, phases: Sequence[Phase], device: torch.device) -> None:
        check_parts(self.tokenizer, phases)
        check_losses(self.config, phases, self._code_losses(), self.tokenizer.downsample_factor)
        settings = self.config.losses
        networks = load_networks(settings, phases, self.config.data.crop.resolution)
        self._networks = {term: network.to(device) for term, network in networks.items()}
        if is_weighted("representation", settings, phases):
            self._targets = [load_target(target).to(device) for target in settings.representation.targets]
        self.to(device)

    def start_phase(self, phase: Phase) -> None:
        self._weights = weights_of(self.config.losses, phase)
        if not phase.trains_codes:  # codes that are not trained have no losses
            self._weights |= dict.fromkeys(OF_CODES, 0.0)
        for name, part in parts_of(self.tokenizer):
            part.requires_grad_(phase.trains_part(name))
        self.tokenizer.quantizer.start_phase(
            frozen=not phase.trains_part("quantizer"),
            bypass=not phase.quantize,
            skipped_losses=frozenset(name for name, weight in self._weights.items() if not weight),
        )

    def weight(self, term: str) -> float:
        return self._weights.get(term, 1.0)  # the discriminator's own loss is not in the settings

    def losses(self, batch: Batch, player: str, step: int) -> Losses:
        settings, adversarial = self.config.losses, self._weights["adversarial"] > 0
        if player == "discriminator":
            active = adversarial and step >= settings.discriminator_start
            return self._discriminator_losses(batch, step) if active else {}
        start = max(settings.adversarial_start, settings.discriminator_start)
        return self._tokenizer_losses(batch, adversarial and step >= start)

    def _tokenizer_losses(self, batch: Batch, adversarial: bool) -> Losses:
        images, settings, weights = batch.images, self.config.losses, self._weights
        text = (
            None if self.text_conditioner is None else self.text_conditioner.encode_batch(batch.captions, batch.labels)
        )
        encoding = self.tokenizer.encode(images, text)
        reconstructions = self.tokenizer.decode(encoding.latents, text, encoding.grid_size)
        self._reconstructions = reconstructions.detach()
        terms: Losses = {name: value for name, value in encoding.losses.items() if weights[name]}
        if weights["l1"]:
            terms["l1"] = l1(images, reconstructions)
        if weights["l2"]:
            terms["l2"] = l2(images, reconstructions)
        if weights["perceptual"]:
            terms["perceptual"] = perceptual_distance(self._networks["perceptual"], images, reconstructions)
        if weights["text"]:
            terms["text"] = text_loss(self._networks["text"], images, reconstructions, batch.words, settings.text)
        if weights["face"]:
            terms["face"] = face_loss(self._networks["face"], images, reconstructions, batch.faces, settings.face)
        if weights["ocr"]:
            terms["ocr"] = perceptual_distance(self._networks["ocr"], images, reconstructions)
        if weights["representation"]:
            terms["representation"] = self._representation_loss(batch, encoding)
        if adversarial:
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = generator_loss(
                self.discriminator(reconstructions), self.config.losses.adversarial_kind
            )
        return terms

    def _code_losses(self) -> frozenset[str]:
        """Return the names of the losses on this tokenizer's codes, which train the parts before the decoder."""
        return self.tokenizer.quantizer.loss_names | ({"representation"} if len(self.heads) else set())

    def _representation_heads(self) -> Iterator[RepresentationHead]:
        """Yield a prediction head for each target if any phase has the representation loss.

        The heads are trained with the tokenizer, but are not part of it.

        Raises:
            ConfigError: a target's branch does not exist.
        """
        settings, tokenizer = self.config.losses.representation, self.tokenizer
        if not is_weighted("representation", self.config.losses, self.config.training.phases):
            return
        for target in settings.targets:
            if target.branch >= max(1, len(tokenizer.codebook_sizes)):
                raise ConfigError(
                    f"representation: {target.network} is for branch {target.branch}, counted from 0, and the "
                    f"tokenizer has {len(tokenizer.codebook_sizes)}"
                )
            yield RepresentationHead(tokenizer.branch_dims[target.branch], target.dim, settings)

    def _representation_loss(self, batch: Batch, encoding: Encoding) -> Float[Tensor, ""]:
        """Return the representation loss, summed over the targets."""
        settings, branches = self.config.losses.representation, self.tokenizer.split(encoding.latents)
        grid = encoding.grid_size if self.tokenizer.tokens_on_grid else (1, encoding.latents.shape[1])
        total = batch.images.new_zeros(())
        for index, (target, head, network) in enumerate(zip(settings.targets, self.heads, self._targets, strict=True)):
            target_features, is_present = _features(network, batch)
            predicted = head(branches[target.branch], grid)
            total = total + representation_loss(predicted, target_features, settings, is_present)
            self._target_counts[index].append(is_present.sum())
        return total

    def _discriminator_losses(self, batch: Batch, step: int) -> Losses:
        assert self._reconstructions is not None, "the tokenizer plays first"
        self.discriminator.requires_grad_(True)
        real, fake = self.discriminator(batch.images), self.discriminator(self._reconstructions)
        terms = {"discriminator": discriminator_loss(real, fake, self.config.losses.adversarial_kind)}
        if self._weights["lecam"]:
            terms["lecam"] = self.lecam(real, fake)
        every = self.config.losses.r1_every
        if self._weights["r1"] and step % every == 0:
            terms["r1"] = every * r1_penalty(self.discriminator, batch.images)
        return terms

    def after_step(self) -> dict[str, float]:
        self._reconstructions = None
        self.lecam.update()
        stats: dict[str, float] = {}
        for index, counts in enumerate(self._target_counts):  # of this rank, whose InfoNCE negatives are one fewer
            if counts:
                stats[f"representation_pictures_{index}"] = torch.stack(counts).float().mean().item()
                counts.clear()
        return stats | self.tokenizer.quantizer.update()


@torch.no_grad()
def _features(network: FrozenNetwork, batch: Batch) -> tuple[Float[Tensor, "batch dim"], Bool[Tensor, " batch"]]:
    """Return a target network's embeddings of the pictures or captions, and which pictures have one."""
    captioned = torch.tensor([caption is not None for caption in batch.captions], device=batch.images.device)
    if isinstance(network, TextEncoder):
        return network.embed_text([caption or "" for caption in batch.captions]), captioned
    return network.embed(batch.images), torch.ones_like(captioned)  # pyright: ignore[reportCallIssue]
