import math

import pytest
import torch
import torch.nn.functional as F

from imtok.config import ConfigError
from imtok.tokenizers import vq
from imtok.tokenizers.vq import VectorQuantizer, VQConfig, entropy_loss


def quantizer(size: int = 16, dim: int = 4, **changes: object) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(VQConfig(codebook_size=size, codebook_dim=dim, **changes)).train()


@pytest.mark.parametrize("normalize", [True, False])
def test_codes_are_nearest_and_losses_are_squared_distances(normalize: bool) -> None:
    model, z = quantizer(normalize=normalize), torch.randn(2, 5, 4)
    output = model(z)
    vectors, codebook = (F.normalize(v, dim=-1) if normalize else v for v in (z, model.codebook))
    distance = (vectors[:, :, None] - codebook[None, None]).square().sum(-1)
    assert torch.equal(output.codes[..., 0], distance.argmin(-1))
    expected = distance.min(-1).values.mean() / 4  # per element
    assert output.losses["codebook"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.losses["commitment"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(output.latents, model.lookup(output.codes), atol=1e-6)


def test_gradient_targets_of_losses_and_straight_through_latents() -> None:
    model, z = quantizer(), torch.randn(2, 5, 4, requires_grad=True)
    output = model(z)
    gradients = {
        name: torch.autograd.grad(loss, (z, model.codebook), retain_graph=True, allow_unused=True)
        for name, loss in output.losses.items()
    }
    assert gradients["codebook"][0] is None
    assert gradients["commitment"][1] is None
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients["entropy"])
    through_latents = torch.autograd.grad(output.latents.sum(), (z, model.codebook), allow_unused=True)
    through_normalize = torch.autograd.grad(F.normalize(z, dim=-1).sum(), z)[0]
    assert torch.allclose(through_latents[0], through_normalize)  # straight-through estimator
    assert through_latents[1] is None


def test_entropy_loss_matches_hand_computation() -> None:
    codebook = torch.eye(4)
    certain = torch.eye(4).repeat(3, 1)
    assert entropy_loss(certain, codebook, 0.01).item() == pytest.approx(-math.log(4), abs=1e-5)  # confident, all used
    one_code = torch.eye(4)[:1].repeat(8, 1)
    assert entropy_loss(one_code, codebook, 0.01).item() == pytest.approx(0, abs=1e-5)  # confident, one code only
    undecided = torch.full((6, 4), 0.5)
    assert entropy_loss(undecided, codebook, 0.01).item() == pytest.approx(0, abs=1e-5)  # uncertain, all used
    vectors, codes = torch.eye(2), torch.eye(2)  # squared distances 0 and 2
    p = 1 / (1 + math.exp(-2 / 0.5))
    vector_entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert entropy_loss(vectors, codes, 0.5).item() == pytest.approx(vector_entropy - math.log(2), abs=1e-6)


def test_entropy_loss_does_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    vectors, codebook = torch.randn(13, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)

    def loss_and_gradients() -> tuple[torch.Tensor, ...]:
        loss = entropy_loss(vectors, codebook, 0.3)
        return loss, *torch.autograd.grad(loss, (vectors, codebook))

    in_one_block = loss_and_gradients()
    monkeypatch.setattr(vq, "_ENTROPY_ELEMENTS", 12)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(in_one_block, loss_and_gradients(), strict=True))
    soft = F.softmax(-torch.cdist(vectors, codebook).square() / 0.3, dim=1)
    naive = -(soft * soft.log()).sum(1).mean() + (soft.mean(0) * soft.mean(0).log()).sum()
    assert in_one_block[0].item() == pytest.approx(naive.item(), abs=1e-5)


def test_skipped_and_bypassed_losses_are_not_computed() -> None:
    model, z = quantizer(), torch.randn(1, 3, 4)
    model.skipped_losses = frozenset({"entropy"})
    assert model(z).losses.keys() == {"codebook", "commitment"}
    model.bypass = True
    output = model(z)
    assert output.losses.keys() == {"codebook"}
    assert torch.allclose(output.latents, F.normalize(z, dim=-1))
    assert model.eval()(z).losses == {}


def test_code_usage_is_summed_over_micro_batches_and_reset_by_update() -> None:
    model = quantizer(size=4, dim=2, normalize=False)
    model.codebook.data = torch.tensor([[0.0, 0], [1, 0], [0, 1], [9, 9]])
    model(torch.tensor([[[0.0, 0.1], [0.1, 0]]]))
    model(torch.tensor([[[0.9, 0.1], [0.1, 0]]]))
    assert model.update() == {"codebook_used": 0.5}
    assert model.update() == {}


def test_rejects_invalid_config() -> None:
    with pytest.raises(ConfigError, match="vq: codebook_size, codebook_dim and entropy_temperature must be positive"):
        VQConfig(codebook_size=0)
