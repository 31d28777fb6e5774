"""Discriminators: published sizes, receptive field, and independence of a picture's logits from its batch."""

import dataclasses

import pytest
import torch

from imtok.config import ConfigError, from_dict, to_dict
from imtok.losses.adversarial import discriminator_loss, generator_loss
from imtok.losses.discriminators import (
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    StyleBlock,
    StyleDiscriminator,
    StyleDiscriminatorConfig,
    build_discriminator,
)
from imtok.presets import get
from imtok.training.run import RunConfig

SMALL = [
    PatchDiscriminatorConfig(base_channels=16, num_layers=2),
    StyleDiscriminatorConfig(resolution=32, base_channels=8, channel_multipliers=(1, 2, 2)),
]


def test_patch_discriminator_has_paper_size_and_70_px_receptive_field():
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig())
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633  # 2.8M in Table 11
    images = torch.zeros(1, 3, 256, 256)
    assert discriminator(images).shape == (1, 1, 30, 30)
    # GroupNorm depends on the whole picture; without it the receptive field is local
    for module in discriminator.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    images.requires_grad_()
    discriminator(images)[0, 0, 15, 15].backward()
    rows, columns = images.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (70, 70)
    assert PatchDiscriminator(PatchDiscriminatorConfig())(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.kind)
def test_a_pictures_logits_do_not_depend_on_its_batch(config):
    torch.manual_seed(0)
    discriminator = build_discriminator(config).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    together = discriminator(images)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.kind)
def test_discriminator_learns_bright_versus_dark_in_80_steps(config):
    torch.manual_seed(0)
    discriminator = build_discriminator(config)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    real, fake = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32) - 1
    for _ in range(80):
        optimizer.zero_grad()
        loss = discriminator_loss(discriminator(real), discriminator(fake))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert generator_loss(discriminator(fake)) > generator_loss(discriminator(real))


def test_style_discriminator_has_published_size_at_both_resolutions():
    """TexTok, section 4.1 and appendix C: about 24M."""
    for config in (
        StyleDiscriminatorConfig(),
        StyleDiscriminatorConfig(resolution=512, channel_multipliers=(0.5, 1, 2, 4, 4, 4, 4)),
    ):
        with torch.device("meta"):
            discriminator = StyleDiscriminator(config)
            logits = discriminator(torch.zeros(2, 3, config.resolution, config.resolution))
        assert sum(p.numel() for p in discriminator.parameters()) / 1e6 == pytest.approx(24, rel=0.03)
        assert logits.shape == (2, 1)


def test_blur_keeps_flat_areas_and_removes_one_pixel_stripes():
    block = StyleBlock(2, 2)
    flat = torch.full((1, 2, 8, 8), 0.3)
    assert torch.allclose(block._blurred(flat), flat)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 2, 8, 8)
    assert block._blurred(stripes)[..., 1:-1].abs().max() < 1e-6


def test_configs_without_kind_are_patch_discriminators():
    values = to_dict(get("insighttok"))
    del values["discriminator"]["kind"]
    assert from_dict(RunConfig, values).discriminator == PatchDiscriminatorConfig()
    for config in SMALL:
        run = dataclasses.replace(get("insighttok"), discriminator=config)
        assert from_dict(RunConfig, to_dict(run)) == run


def test_style_discriminator_rejects_invalid_sizes():
    with pytest.raises(ConfigError, match="100 px cannot be halved 3 times"):
        StyleDiscriminatorConfig(resolution=100, channel_multipliers=(1, 1, 1))
    for multipliers in ((), (1, 0.3)):
        with pytest.raises(ConfigError, match="must be 1 or more"):
            StyleDiscriminatorConfig(resolution=64, base_channels=1, channel_multipliers=multipliers)
    with pytest.raises(ValueError, match=r"wants 32 px, not \(64, 64\)"):
        build_discriminator(SMALL[1])(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smallest_is_the_minimum_picture_size(layers: int) -> None:
    config = PatchDiscriminatorConfig(base_channels=16, num_layers=layers)
    discriminator = PatchDiscriminator(config)
    assert discriminator(torch.zeros(1, 3, config.smallest, config.smallest)).shape == (1, 1, 1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        discriminator(torch.zeros(1, 3, config.smallest - 1, config.smallest - 1))


@pytest.mark.parametrize("wrong", [{"base_channels": 24}, {"base_channels": 0}, {"num_layers": 0}])
def test_rejects_invalid_patch_discriminator_configs(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="multiple of 16, num_layers 1 or more"):
        PatchDiscriminatorConfig(**wrong)
