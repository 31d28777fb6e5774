"""Adversarial losses, and the regularizers of the discriminator: LeCAM and R1."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.layers.collective import sum_over_ranks
from imtok.layers.precision import upcast

AdversarialKind = Literal["hinge", "non_saturating"]


def discriminator_loss(
    real_logits: Float[Tensor, "..."], fake_logits: Float[Tensor, "..."], kind: AdversarialKind = "hinge"
) -> Float[Tensor, ""]:
    """Compute the discriminator's loss, which rewards high logits of originals and low logits of reconstructions.

    TexTok uses `non_saturating` (appendix C); InsightTok names no kind, and `hinge` is VQGAN's. The losses of originals
    and reconstructions are averaged: the result is 1 (hinge) or log 2 (non-saturating) when all logits are 0.

    Args:
        real_logits: the discriminator's logits of originals.
        fake_logits: the discriminator's logits of reconstructions, which are detached from the tokenizer's graph.
        kind: `hinge`, or `non_saturating` (the logistic loss).
    """
    real_logits, fake_logits = upcast(real_logits), upcast(fake_logits)
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def generator_loss(fake_logits: Float[Tensor, "..."], kind: AdversarialKind = "hinge") -> Float[Tensor, ""]:
    """Compute the tokenizer's adversarial loss, which rewards high logits of its reconstructions.

    Args:
        fake_logits: the discriminator's logits of reconstructions, with the tokenizer's graph.
        kind: `hinge` (minus the mean logit) or `non_saturating`.
    """
    fake_logits = upcast(fake_logits)
    return -fake_logits.mean() if kind == "hinge" else F.softplus(-fake_logits).mean()


def r1_penalty(
    discriminator: Callable[[Tensor], Tensor], images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Compute half the mean squared norm of the logits' gradient with respect to originals (Mescheder et al. 2018).

    A picture's gradient is that of the sum of its logits. The penalty is computed in fp32 even under autocast.

    Args:
        discriminator: discriminator whose gradient at real pictures is penalized.
        images: originals in [-1, 1].
    """
    with torch.autocast(images.device.type, enabled=False):
        images = upcast(images).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean() / 2


class LeCAM(nn.Module):
    """LeCAM regularization of the discriminator by running means of its logits (Tseng et al. 2021).

    InsightTok's weight is .05. The penalty is taken per logit, which the paper does not specify. The means are buffers
    and hence part of the checkpoint. The logits of all micro-batches of a step are accumulated, and `update` applies
    them once, summed over all ranks: the penalty always refers to the means of earlier steps, however a step is divided
    into micro-batches and ranks.
    """

    real_mean: Tensor
    fake_mean: Tensor
    _sums: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        self.register_buffer("_sums", torch.zeros(4), persistent=False)  # real sum, count, fake sum, count

    def forward(self, real_logits: Float[Tensor, "..."], fake_logits: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Compute the penalty.

        It penalizes logits of originals above the running mean of the reconstructions' logits, and logits of
        reconstructions below the running mean of the originals' logits. In training mode with gradients enabled, the
        logits are also accumulated for the next `update`.
        """
        real_logits, fake_logits = upcast(real_logits), upcast(fake_logits)
        if self.training and torch.is_grad_enabled():
            real, fake = real_logits.detach(), fake_logits.detach()
            counts = real.new_tensor([real.numel(), fake.numel()])
            self._sums += torch.stack([real.sum(), counts[0], fake.sum(), counts[1]])
        above = F.relu(real_logits - self.fake_mean).square().mean()
        below = F.relu(self.real_mean - fake_logits).square().mean()
        return above + below

    @torch.no_grad()
    def update(self) -> None:
        """Update the running means with the accumulated logits of this step, identically on all ranks.

        Call this once per optimizer step of the discriminator, on every rank.
        """
        sums = self._sums.clone()
        self._sums.zero_()
        sum_over_ranks([sums])
        if sums[1] == 0 or sums[3] == 0:
            return
        self.real_mean.lerp_(sums[0] / sums[1], 1 - self.decay)
        self.fake_mean.lerp_(sums[2] / sums[3], 1 - self.decay)
