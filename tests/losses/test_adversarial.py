"""Adversarial losses: hand-computed values, signs, independence of micro-batches, LeCAM on one rank and on two."""

import math
import subprocess
import sys

import pytest
import torch

from imtok.losses.adversarial import LeCAM, discriminator_loss, generator_loss, r1_penalty
from imtok.losses.discriminators import StyleDiscriminator, StyleDiscriminatorConfig

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])


def test_losses_match_hand_computed_values():
    # hinge: real max(0, 1 - r) = 0, .5, 2; fake max(0, 1 + f) = 0, 1
    assert discriminator_loss(REAL, FAKE).item() == pytest.approx(0.5 * (2.5 / 3 + 0.5))
    assert generator_loss(FAKE).item() == pytest.approx(1.5)
    real = sum(math.log1p(math.exp(-r)) for r in REAL.tolist()) / 3
    fake = sum(math.log1p(math.exp(f)) for f in FAKE.tolist()) / 2
    assert discriminator_loss(REAL, FAKE, "non_saturating").item() == pytest.approx(0.5 * (real + fake))
    generator = sum(math.log1p(math.exp(-f)) for f in FAKE.tolist()) / 2
    assert generator_loss(FAKE, "non_saturating").item() == pytest.approx(generator)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_discriminator_and_generator_gradients_have_opposite_signs(kind):
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad < 0).all()  # descent raises the logits of originals
    assert (fake.grad > 0).all()  # and lowers those of reconstructions
    fake.grad = None
    generator_loss(fake, kind).backward()
    assert (fake.grad < 0).all()  # the generator raises them
    undecided = discriminator_loss(torch.zeros(3), torch.zeros(3), kind).item()
    assert undecided == pytest.approx({"hinge": 1.0, "non_saturating": math.log(2)}[kind])


def test_bf16_logits_are_summed_in_fp32():
    logits = torch.linspace(-1, 1, 999).bfloat16()
    expected = 0.5 * ((1 - logits.double()).clamp(min=0).mean() + (1 + logits.double()).clamp(min=0).mean())
    assert discriminator_loss(logits, logits).item() == pytest.approx(expected.item(), rel=1e-6)


def test_lecam_matches_hand_computed_values():
    lecam = LeCAM(decay=0.9)
    penalty = lecam(REAL, FAKE)  # both means are 0: relu(r)^2 = 4, .25, 0 and relu(-f)^2 = 9, 0
    assert penalty.item() == pytest.approx(4.25 / 3 + 9 / 2)
    assert lecam(REAL, FAKE).item() == penalty.item()  # the means do not change before the update
    lecam.update()
    assert lecam.real_mean.item() == pytest.approx(0.1 * 1.5 / 3)
    assert lecam.fake_mean.item() == pytest.approx(0.1 * -1.5)
    expected = (2.15**2 + 0.65**2 + 0) / 3 + (3.05**2 + 0.05**2) / 2
    assert lecam(REAL, FAKE).item() == pytest.approx(expected)


def test_lecam_means_do_not_depend_on_micro_batches():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 8, 1, 5, 5)
    whole, split = LeCAM(), LeCAM()
    whole(real, fake)
    for part in range(0, 8, 2):
        split(real[part : part + 2], fake[part : part + 2])
    whole.update()
    split.update()
    torch.testing.assert_close(split.state_dict(), whole.state_dict())
    assert list(whole.state_dict()) == ["real_mean", "fake_mean"]
    before = split.state_dict()["real_mean"].clone()
    split.update()  # no logits since the last update
    with torch.no_grad():
        split(real, fake)  # not accumulated: gradients are disabled
    split.eval()(real, fake)
    split.update()
    assert split.real_mean == before


def test_lecam_gradient_reaches_real_and_fake_logits():
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    LeCAM()(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.tensor([4.0, 1.0, 0.0]) / 3)
    torch.testing.assert_close(fake.grad, torch.tensor([-6.0, 0.0]) / 2)


TWO_RANKS = """
import sys, torch, torch.distributed as dist
torch.set_num_threads(1)
from imtok.losses.adversarial import LeCAM
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
lecam = LeCAM(decay=0.5)
real, fake = torch.arange(6.0).view(2, 3), -torch.arange(6.0).view(2, 3)
lecam(real[rank], fake[rank])
lecam.update()
print(lecam.real_mean.item(), lecam.fake_mean.item())
dist.destroy_process_group()
"""


def test_lecam_means_are_computed_over_all_ranks(tmp_path):
    command = [sys.executable, "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        assert [rank.communicate(timeout=120)[0].split() for rank in ranks] == [["1.25", "-1.25"]] * 2
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_r1_is_half_the_squared_gradient_norm():
    weights = torch.randn(3, 8, 8)
    penalty = r1_penalty(lambda images: (images * weights).sum((1, 2, 3)), torch.randn(4, 3, 8, 8))
    assert penalty.item() == pytest.approx(weights.square().sum().item() / 2, rel=1e-5)


def test_r1_gradient_matches_finite_differences():
    torch.manual_seed(0)
    config = StyleDiscriminatorConfig(resolution=16, base_channels=4, channel_multipliers=(1, 2))
    discriminator, images = StyleDiscriminator(config).double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    parameters = [p for p in discriminator.parameters() if p.dim() > 1]
    r1_penalty(discriminator, images).backward()
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))

    def penalty_after(step: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += step * direction
        value = r1_penalty(discriminator, images).item()
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= step * direction
        return value

    assert slope.item() == pytest.approx((penalty_after(1e-7) - penalty_after(-1e-7)) / 2e-7, rel=1e-4)
