"""Any number of codebooks of any sizes, with and without adapters, through one class."""

import pytest
import torch

from imtok import presets
from imtok.config import ConfigError, from_dict, to_dict
from imtok.tokenizers import VQGAN, AdapterConfig, FactorizedVQConfig, VQConfig, VQGANConfig
from imtok.tokenizers.factorized import FactorizedQuantizer, disentangle_loss

SIZES = [(16,), (16, 16), (16, 8), (8, 16, 32), (8, 4, 16, 2)]


def model(sizes: tuple[int, ...], adapters: bool = True, update: str = "gradient") -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(
        VQGANConfig(
            channels=16,
            channel_multipliers=(1, 2),
            residual_blocks=1,
            groups=2,
            latent_channels=8,
            quantizer=FactorizedVQConfig(codebook_sizes=sizes, sub_dim=4, update=update),  # pyright: ignore
            adapter=AdapterConfig(depth=1, num_heads=2, grid_size=8) if adapters else None,
        )
    )


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("adapters", [True, False])
def test_codes_and_latents_are_interconvertible_and_decode_equally(sizes: tuple[int, ...], adapters: bool) -> None:
    tokenizer = model(sizes, adapters).eval()
    encoding = tokenizer.encode(torch.rand(2, 3, 16, 24) * 2 - 1)
    assert encoding.codes is not None
    assert encoding.codes.shape == (2, 8 * 12, len(sizes))
    assert encoding.latents.shape == (2, 8 * 12, 4 * len(sizes))
    assert all(encoding.codes[..., k].max() < size for k, size in enumerate(sizes))
    assert torch.equal(tokenizer.lookup(encoding.codes), encoding.latents)
    assert torch.equal(tokenizer.quantizer(encoding.latents).codes, encoding.codes)
    decoded = tokenizer.decode(encoding.latents, grid_size=encoding.grid_size)
    assert torch.equal(tokenizer.decode_codes(encoding.codes, grid_size=encoding.grid_size), decoded)
    assert tokenizer.codebook_sizes == sizes


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_reach_every_adapter_and_every_codebook(sizes: tuple[int, ...]) -> None:
    tokenizer = model(sizes).train()
    encoding = tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    decoded = tokenizer.decode(encoding.latents, grid_size=encoding.grid_size)
    (decoded.square().mean() + sum(encoding.losses.values())).backward()
    without_gradient = [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None]
    assert without_gradient == []
    for branch in range(len(sizes)):
        for part in (f"encoder.branches.{branch}.adapter.positions.table", f"quantizer.branches.{branch}.codebook"):
            gradient = tokenizer.get_parameter(part).grad
            assert gradient is not None
            assert gradient.abs().sum() > 0


def test_one_codebook_without_adapter_equals_vqgan() -> None:
    factorized = model((16,), adapters=False)
    config = VQGANConfig(**{**vars(factorized.config), "quantizer": VQConfig(codebook_size=16, codebook_dim=4)})
    plain = VQGAN(config)
    renamed = {name.replace("quantizer.branches.0.", "quantizer."): t for name, t in factorized.weights().items()}
    plain.load_weights(renamed)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ours, theirs = factorized.train().encode(images), plain.train().encode(images)
    assert torch.equal(ours.latents, theirs.latents)
    assert ours.codes is not None
    assert theirs.codes is not None
    assert torch.equal(ours.codes, theirs.codes)
    assert ours.losses.keys() == theirs.losses.keys()
    assert all(torch.equal(ours.losses[name], theirs.losses[name]) for name in ours.losses)


def test_branches_are_quantized_independently() -> None:
    """The input of one branch does not affect the codes of another."""
    quantizer = FactorizedQuantizer(FactorizedVQConfig(codebook_sizes=(16, 8), sub_dim=4)).eval()
    z = torch.randn(1, 6, 8)
    other = torch.cat([z[..., :4], torch.randn(1, 6, 4)], dim=2)
    assert torch.equal(quantizer(z).codes[..., 0], quantizer(other).codes[..., 0])
    assert not torch.equal(quantizer(z).codes[..., 1], quantizer(other).codes[..., 1])


def test_ema_update_changes_every_codebook() -> None:
    tokenizer = model((16, 8), update="ema").train()
    before = [branch.codebook.clone() for branch in tokenizer.quantizer.branches]
    tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    stats = tokenizer.quantizer.update()
    assert {"codebook_used", "codebook_used_0", "codebook_used_1", "codebook_restarts_1"} <= stats.keys()
    assert stats["codebook_used"] == min(stats["codebook_used_0"], stats["codebook_used_1"])
    assert all(not torch.equal(a, b.codebook) for a, b in zip(before, tokenizer.quantizer.branches, strict=True))
    assert "codebook" not in tokenizer.encode(torch.rand(1, 3, 16, 16)).losses
    assert not any("statistics" in name for name in tokenizer.weights())


def test_start_phase_applies_to_every_branch() -> None:
    quantizer = FactorizedQuantizer(FactorizedVQConfig(codebook_sizes=(4, 4), sub_dim=2, update="ema"))
    quantizer.start_phase(frozen=True, bypass=True, skipped_losses=frozenset({"entropy"}))
    before = [tensor.clone() for tensor in quantizer.state_dict().values()]
    quantizer.train()(torch.randn(2, 3, 4))
    quantizer.update()
    assert all(map(torch.equal, before, quantizer.state_dict().values()))  # no codebook was updated
    branch_settings = [(branch.frozen, branch.bypass, branch.skipped_losses) for branch in quantizer.branches]
    assert branch_settings == [(True, True, {"entropy"})] * 2


def test_losses_are_branch_means_and_disentangle_loss() -> None:
    torch.manual_seed(0)
    quantizer = FactorizedQuantizer(FactorizedVQConfig(codebook_sizes=(16, 8), sub_dim=4)).train()
    z = torch.randn(2, 6, 8, requires_grad=True)
    output = quantizer(z)
    branch_outputs = [branch(part) for branch, part in zip(quantizer.branches, z.split(4, dim=2), strict=True)]
    assert output.losses.keys() == {"codebook", "commitment", "entropy", "disentangle"} == quantizer.loss_names
    for name in branch_outputs[0].losses:
        mean = (branch_outputs[0].losses[name] + branch_outputs[1].losses[name]) / 2
        assert output.losses[name].item() == pytest.approx(mean.item(), abs=1e-6)
    to_z, *to_codebooks = torch.autograd.grad(
        output.losses["disentangle"], (z, *quantizer.parameters()), allow_unused=True
    )
    assert to_z.abs().sum() > 0  # only the adapters get its gradient; the codes follow by their own loss
    assert to_codebooks == [None, None]
    quantizer.bypass = True
    assert "disentangle" not in quantizer(z).losses
    quantizer.bypass, quantizer.skipped_losses = False, frozenset({"disentangle"})
    assert "disentangle" not in quantizer(z).losses
    assert "disentangle" not in FactorizedQuantizer(FactorizedVQConfig(codebook_sizes=(4,))).train()(z).losses


def test_codebook_sizes_override_those_of_preset() -> None:
    tokenizer = presets.create_tokenizer("fqgan-debug", codebook_sizes=(8, 4, 4))
    assert tokenizer.codebook_sizes == (8, 4, 4)
    assert len(tokenizer.encoder.branches) == 3  # pyright: ignore


def test_disentangle_loss_matches_hand_computation() -> None:
    x, y = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[0.0, 3.0], [1.0, 1.0]]])
    assert disentangle_loss([x, y]).item() == pytest.approx((0 + 0.5) / 2)
    assert disentangle_loss([x, -3 * x]).item() == pytest.approx(1)
    three = disentangle_loss([x, y, x])
    assert three.item() == pytest.approx((0.25 + 1 + 0.25) / 3)


def test_keep_codebook_zeroes_channels_of_other_branches() -> None:
    tokenizer = model((16, 8)).eval()
    latents = tokenizer.encode(torch.rand(1, 3, 16, 16)).latents
    kept = [tokenizer.keep_codebook(latents, branch) for branch in range(2)]
    assert torch.equal(kept[0] + kept[1], latents)
    assert kept[1][..., :4].abs().max() == 0
    with pytest.raises(ValueError, match="there are 2 codebooks, counted from 0, and no 2"):
        tokenizer.keep_codebook(latents, 2)


def test_adapter_positions_are_resized_to_other_grids() -> None:
    tokenizer = model((16, 8)).eval()
    positions = tokenizer.encoder.branches[0].adapter.positions
    assert torch.equal(positions((8, 8)), positions.table)
    torch.nn.init.constant_(positions.table, 0.7)
    assert torch.allclose(positions((5, 13)), torch.full((65, 32), 0.7), atol=1e-6)
    ramp = torch.arange(8.0).repeat_interleave(8)[:, None].expand(64, 32)  # grows with the row
    positions.table.data.copy_(ramp)
    stretched = positions((16, 8)).unflatten(0, (16, 8))
    assert (stretched.diff(dim=0)[2:-2] > 0).all()
    assert stretched.diff(dim=1).abs().max() < 1e-5
    assert tokenizer.reconstruct(torch.rand(1, 3, 13, 31)).shape == (1, 3, 13, 31)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": {"kind": "factorized", "codebook_sizes": []}}, "codebook_sizes is empty"),
        ({"quantizer": {"kind": "factorized", "codebook_sizes": [4, 0]}}, "must be positive"),
        ({"quantizer": {"kind": "vq"}, "adapter": {}}, "adapters belong to the branches of a factorized quantizer"),
        ({"quantizer": {"kind": "factorized"}, "adapter": {"num_heads": 5}}, "5 heads do not divide"),
        ({"quantizer": {"kind": "ema_vq", "codebook_size": 0}}, "must be positive"),
        ({"quantizer": {"kind": "octree"}}, "does not match any of the expected tags"),
        ({"quantizer": {"kind": "factorized", "sizes": [4]}}, "sizes: no such setting"),
    ],
)
def test_rejects_invalid_configs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(VQGANConfig, {**to_dict(VQGANConfig()), **changes})
    assert "\n" not in str(caught.value)
