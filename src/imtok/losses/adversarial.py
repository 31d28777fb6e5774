"""Adversarial losses, and what keeps a discriminator in bounds: LeCAM and R1."""

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
    """What the discriminator pays: real logits shall be high, those of reconstructions low.

    TexTok has `non_saturating` (appendix C); InsightTok names no kind, and hinge is VQGAN's. Both halves are averaged:
    1 (hinge) or log 2 when undecided.

    Args:
        real_logits: of originals.
        fake_logits: of reconstructions that carry no graph to the tokenizer.
        kind: `hinge`, or `non_saturating` (the logistic loss).
    """
    real_logits, fake_logits = upcast(real_logits), upcast(fake_logits)
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def generator_loss(fake_logits: Float[Tensor, "..."], kind: AdversarialKind = "hinge") -> Float[Tensor, ""]:
    """What the tokenizer pays: the discriminator's logits of its reconstructions shall be high.

    Args:
        fake_logits: of reconstructions, with their graph.
        kind: `hinge` (minus the mean logit) or `non_saturating`.
    """
    fake_logits = upcast(fake_logits)
    return -fake_logits.mean() if kind == "hinge" else F.softplus(-fake_logits).mean()


def r1_penalty(
    discriminator: Callable[[Tensor], Tensor], images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Half the mean squared length of the logits' gradient with respect to originals (Mescheder et al. 2018).

    A picture's gradient is that of the sum of its logits. Computed in fp32 whatever autocast says.

    Args:
        discriminator: whose slope around real pictures shall be small.
        images: originals in [-1, 1].
    """
    with torch.autocast(images.device.type, enabled=False):
        images = upcast(images).detach().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean() / 2


class LeCAM(nn.Module):
    """Keeps the discriminator's logits near their running means (Tseng et al. 2021); InsightTok's weight is .05.

    The penalty is taken per logit; the paper does not say so. The means are buffers, hence in the checkpoint. What the
    micro-batches of a step show is gathered, and `update` applies it once, summed over all ranks: a penalty always
    compares with the means of earlier steps, however the step is cut up.
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
        """The penalty: reals shall not rise above the reconstructions' mean, nor those fall below the reals'.

        In training mode, and where gradients are recorded, the logits also enter the next `update`.
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
        """Move the means towards what this step's discriminator passes showed, on all ranks alike.

        Call it once per optimizer step of the discriminator, on every rank.
        """
        sums = self._sums.clone()
        self._sums.zero_()
        sum_over_ranks([sums])
        if sums[1] == 0 or sums[3] == 0:
            return
        self.real_mean.lerp_(sums[0] / sums[1], 1 - self.decay)
        self.fake_mean.lerp_(sums[2] / sums[3], 1 - self.decay)
