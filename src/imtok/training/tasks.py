"""A task is a model with its losses: what the trainer drives."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from imtok import pretrained
from imtok.data.loader import Batch
from imtok.losses.adversarial import LeCAM, PatchDiscriminator, discriminator_loss, generator_loss
from imtok.losses.reconstruction import l1, l2, ocr_perceptual, perceptual_distance
from imtok.losses.regions import face_loss, text_loss
from imtok.pretrained import FeatureNetwork
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import build
from imtok.tokenizers.quantizers import Quantizer
from imtok.training.run import Phase, RunConfig

Losses = dict[str, Float[Tensor, ""]]


@runtime_checkable
class Task(Protocol):
    """What the trainer needs of a model with its losses.

    Attributes:
        players: names of the parts that have an optimizer each, in the order in which they compute.
    """

    players: tuple[str, ...]

    def parameters_of(self, player: str) -> list[nn.Parameter]:
        """All parameters that the player ever trains, in a fixed order."""
        ...

    def start_phase(self, phase: Phase) -> None:
        """Freeze, unfreeze and weigh as the phase says."""
        ...

    def losses(self, batch: Batch, player: str, step: int) -> Losses:
        """Unweighted named scalars of one micro-batch; empty when the player rests."""
        ...

    def weight(self, term: str) -> float:
        """Weight of a loss term in the current phase."""
        ...

    def after_step(self) -> dict[str, float]:
        """Whatever happens once per optimizer step beside the gradient; returns numbers worth logging."""
        ...


class TokenizerTask(nn.Module):
    """A tokenizer against its losses and, where wanted, a discriminator.

    Both players see the same reconstruction: the discriminator judges, detached, what the tokenizer has just made,
    and both step afterwards.
    """

    players = ("tokenizer", "discriminator")

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer = build(config.tokenizer)
        self.discriminator = PatchDiscriminator(config.discriminator)
        self.lecam = LeCAM()
        self._weights = config.losses.weights()
        self._networks: dict[str, FeatureNetwork] = {}  # a plain dict: they are not part of the state
        self._drawn: Tensor | None = None

    @property
    def model(self) -> Tokenizer:
        """The part that is averaged, saved and evaluated."""
        return self.tokenizer

    def parameters_of(self, player: str) -> list[nn.Parameter]:
        module = self.tokenizer if player == "tokenizer" else self.discriminator
        return list(module.parameters())

    def start_phase(self, phase: Phase) -> None:
        self._weights = {**self.config.losses.weights(), **phase.weights}
        for name, part in self.tokenizer.named_children():
            part.requires_grad_(name in phase.trains)
        for quantizer in self._quantizers():
            quantizer.frozen = "quantizer" not in phase.trains
            quantizer.bypass = not phase.quantize
        settings = self.config.losses
        networks = {
            "perceptual": settings.perceptual_network,
            "text": settings.text.network,
            "face": settings.face.network,
            "ocr": settings.ocr_network,
        }
        for term, network in networks.items():
            if self._weights[term] and term not in self._networks:
                self._networks[term] = pretrained.load(network).to(next(self.parameters()).device)

    def weight(self, term: str) -> float:
        return self._weights.get(term, 1.0)  # the discriminator's own loss

    def losses(self, batch: Batch, player: str, step: int) -> Losses:
        adversarial = self._weights["adversarial"] > 0 and step >= self.config.losses.adversarial_start
        if player == "discriminator":
            return self._discriminator_losses(batch) if adversarial else {}
        return self._tokenizer_losses(batch, adversarial)

    def _tokenizer_losses(self, batch: Batch, adversarial: bool) -> Losses:
        images, settings, wanted = batch.images, self.config.losses, self._weights
        encoding = self.tokenizer.encode(images)
        drawn = self.tokenizer.decode(encoding.latents, grid_size=encoding.grid_size)
        self._drawn = drawn.detach()
        terms: Losses = {name: value for name, value in encoding.losses.items() if wanted[name]}
        if wanted["l1"]:
            terms["l1"] = l1(images, drawn)
        if wanted["l2"]:
            terms["l2"] = l2(images, drawn)
        if wanted["perceptual"]:
            terms["perceptual"] = perceptual_distance(self._networks["perceptual"], images, drawn)
        if wanted["text"]:
            terms["text"] = text_loss(self._networks["text"], images, drawn, batch.words, settings.text)
        if wanted["face"]:
            terms["face"] = face_loss(self._networks["face"], images, drawn, batch.faces, settings.face)
        if wanted["ocr"]:
            terms["ocr"] = ocr_perceptual(self._networks["ocr"], images, drawn)
        if adversarial:
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = generator_loss(self.discriminator(drawn), self.config.losses.adversarial_kind)
        return terms

    def _discriminator_losses(self, batch: Batch) -> Losses:
        assert self._drawn is not None, "the tokenizer plays first"
        self.discriminator.requires_grad_(True)
        real, fake = self.discriminator(batch.images), self.discriminator(self._drawn)
        terms = {"discriminator": discriminator_loss(real, fake, self.config.losses.adversarial_kind)}
        if self._weights["lecam"]:
            terms["lecam"] = self.lecam(real, fake)
        return terms

    def after_step(self) -> dict[str, float]:
        self._drawn = None
        self.lecam.update()
        stats: dict[str, float] = {}
        for quantizer in self._quantizers():
            stats |= quantizer.update()
        return stats

    def _quantizers(self) -> Iterator[Quantizer]:
        return (module for module in self.tokenizer.modules() if isinstance(module, Quantizer))
