import pytest
import torch

from imtok.config import ConfigError, from_dict, to_dict
from imtok.tokenizers import VQGAN, EMAVQConfig, VQGANConfig
from imtok.tokenizers.base import grid_from_tokens

TINY = VQGANConfig(
    channels=16,
    channel_multipliers=(1, 2),
    residual_blocks=1,
    groups=2,
    latent_channels=8,
    quantizer=EMAVQConfig(codebook_size=32, codebook_dim=8),
)


def tiny(seed: int = 0, **changes: object) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(from_dict(VQGANConfig, {**to_dict(TINY), **changes}))


@pytest.mark.parametrize(
    ("settings", "millions"),
    [({}, 426.0), ({"channels": 128}, 111.0), ({"channels": 128, "residual_blocks": 2}, 76.1)],
    ids=["insighttok", "insighttok-small", "72M of table 7"],
)
def test_parameter_counts_of_table_7(settings: dict[str, int], millions: float) -> None:
    with torch.device("meta"):
        weights = VQGAN(VQGANConfig(**settings)).weights()
    assert sum(tensor.numel() for tensor in weights.values()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (33, 47), (8, 8), (5, 9), (1, 1)])
def test_reconstruct_keeps_the_size_of_any_picture(patch_size: int, height: int, width: int) -> None:
    model = tiny(patch_size=patch_size).eval()
    images = torch.rand(2, 3, height, width) * 2 - 1
    encoding = model.encode(images)
    factor = 2 * patch_size
    rows, columns = -(-height // factor), -(-width // factor)
    assert encoding.grid_size == (rows, columns)
    assert encoding.codes is not None
    assert encoding.codes.shape == (2, rows * columns, 1)
    reconstruction = model.reconstruct(images)
    assert reconstruction.shape == images.shape
    assert reconstruction.abs().max() <= 1


def test_codes_and_latents_decode_to_equal_images() -> None:
    model = tiny().eval()
    encoding = model.encode(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert encoding.codes is not None
    from_latents = model.decode(encoding.latents, grid_size=encoding.grid_size)
    assert torch.equal(model.decode_codes(encoding.codes, grid_size=encoding.grid_size), from_latents)


def test_image_gets_same_codes_alone_and_in_a_batch() -> None:
    model = tiny().eval()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    together, alone = model.encode(images), model.encode(images[1:2])
    assert torch.equal(together.codes[1:2], alone.codes)  # pyright: ignore[reportOptionalSubscript]


def test_gradient_reaches_every_parameter() -> None:
    model = tiny()
    encoding = model.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    (model.decode(encoding.latents).square().mean() + encoding.losses["commitment"]).backward()
    # A key's bias shifts all attention scores of a query alike, so its gradient is zero but for rounding.
    without_gradient = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without_gradient == []


def test_grad_checkpointing_does_not_change_gradients() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    gradients = []
    for recompute in (False, True):
        model = tiny()
        model.set_grad_checkpointing(recompute)
        model.decode(model.encode(images).latents).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_weights_round_trip_without_the_running_statistics() -> None:
    trained, fresh = tiny(0), tiny(1)
    assert not any("statistics" in name for name in trained.weights())
    fresh.load_weights(trained.weights())
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(trained.eval().reconstruct(images), fresh.eval().reconstruct(images))
    assert torch.equal(fresh.quantizer.statistics.sum, fresh.quantizer.codebook)


def test_misfit_weights_are_rejected_by_name() -> None:
    model, other = tiny(), tiny(channels=32)
    with pytest.raises(ConfigError, match=r"somewhere: these weights do not fit: .* has the shape \(32, .*, not \(16"):
        model.load_weights(other.weights(), "somewhere")
    incomplete = model.weights()
    del incomplete["quantizer.codebook"]
    with pytest.raises(ConfigError, match=r"quantizer\.codebook is missing$"):
        model.load_weights(incomplete)


def test_rejects_invalid_configs() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        tiny(patch_size=0)
    for wrong in ({"groups": 0}, {"latent_channels": 0}, {"channel_multipliers": (1, 0)}):
        with pytest.raises(ConfigError, match="all sizes must be at least 1"):
            VQGANConfig(**wrong)
    with pytest.raises(ConfigError, match="16 channels cannot be split into 32 groups"):
        VQGANConfig(channels=16, channel_multipliers=(2, 4), groups=32)  # the first layers have the base width
    with pytest.raises(ConfigError, match="16 channels cannot be split into 3 groups"):
        tiny(groups=3)
    with pytest.raises(ConfigError, match="kanals: no such setting"):
        tiny(kanals=3)


def test_rejects_token_counts_that_fill_no_grid() -> None:
    assert grid_from_tokens(16, None) == (4, 4)
    assert grid_from_tokens(12, (3, 4)) == (3, 4)
    with pytest.raises(ValueError, match="12 tokens do not fill a square grid"):
        grid_from_tokens(12, None)
    with pytest.raises(ValueError, match="12 tokens do not fill a grid of 5 x 2"):
        grid_from_tokens(12, (5, 2))
