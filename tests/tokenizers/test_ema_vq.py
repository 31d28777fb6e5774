import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from imtok.tokenizers.ema_vq import EMAVectorQuantizer, EMAVQConfig
from imtok.tokenizers.quantization import nearest_codes


def quantizer(size: int = 16, dim: int = 4, seed: int = 0, **settings: float | bool) -> EMAVectorQuantizer:
    torch.manual_seed(seed)
    return EMAVectorQuantizer(EMAVQConfig(codebook_size=size, codebook_dim=dim, **settings))


@pytest.mark.parametrize("normalized", [False, True])
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_nearest_code_has_smallest_distance(normalized: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors, codebook = torch.randn(50, 6, generator=generator), torch.randn(33, 6, generator=generator)
    if normalized:
        vectors, codebook = F.normalize(vectors, dim=1), F.normalize(codebook, dim=1)
    assert torch.equal(nearest_codes(vectors, codebook, normalized), torch.cdist(vectors, codebook).argmin(1))


def test_blockwise_search_equals_whole_search(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook = torch.randn(101, 6), torch.randn(33, 6)
    whole = nearest_codes(vectors, codebook, False)
    monkeypatch.setattr("imtok.tokenizers.quantization._SEARCH_ELEMENTS", 33 * 7)
    assert torch.equal(nearest_codes(vectors, codebook, False), whole)


def test_search_runs_in_fp32_under_bf16_autocast() -> None:
    # Two codes that bf16 cannot tell apart: its 8 bits of mantissa round both products to the same value.
    q = quantizer(2, 2, normalize=False).eval()
    q.codebook.copy_(torch.tensor([[1.0, 0.0], [1.0 + 1e-3, 0.0]]))
    z = torch.tensor([[[1.0, 0.0], [1.002, 0.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        codes = q(z.bfloat16().float()).codes
        assert q(z).codes.flatten().tolist() == [0, 1]
    assert codes.dtype == torch.int64


def test_straight_through_gradient_and_commitment_by_hand() -> None:
    q = quantizer(2, 2, normalize=False)
    q.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    z = torch.tensor([[[1.0, 2.0], [9.0, 10.0]]], requires_grad=True)
    result = q(z)
    assert result.codes.flatten().tolist() == [0, 1]
    torch.testing.assert_close(result.latents, torch.tensor([[[0.0, 0.0], [10.0, 10.0]]]))
    assert result.losses["commitment"].item() == pytest.approx((1 + 4 + 1 + 0) / 4)
    (result.latents * torch.tensor([1.0, 2.0])).sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]))


def test_update_follows_equations_11_to_13_by_hand() -> None:
    q = quantizer(2, 1, normalize=False, decay=0.9, restart_threshold=0.0)
    q.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    q.restart_statistics()
    q(torch.tensor([[[1.0], [2.0], [12.0]]], requires_grad=True))
    q.update()
    count = torch.tensor([0.9 * 1 + 0.1 * 2, 0.9 * 1 + 0.1 * 1])
    total = torch.tensor([0.9 * 0 + 0.1 * 3, 0.9 * 10 + 0.1 * 12])
    torch.testing.assert_close(q.statistics.count, count)
    torch.testing.assert_close(q.codebook[:, 0], total / count)


def test_unused_code_keeps_its_value() -> None:
    q = quantizer(2, 1, normalize=False, decay=0.5, restart_threshold=0.0)
    q.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    q.restart_statistics()
    for _ in range(200):
        q(torch.tensor([[[1.0], [2.0]]], requires_grad=True))
        q.update()
    assert q.codebook[1].item() == pytest.approx(10, rel=1e-5)


def test_micro_batches_are_accumulated_into_one_update() -> None:
    whole, halves = quantizer(), quantizer()
    z = torch.randn(4, 9, 4, requires_grad=True)
    whole(z)
    for half in z.split(2):
        halves(half)
    whole.update()
    halves.update()
    torch.testing.assert_close(halves.codebook, whole.codebook)
    torch.testing.assert_close(halves.statistics.count, whole.statistics.count)


def test_codebook_learns_the_clusters_of_its_data() -> None:
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(16, 8), dim=1)
    q = quantizer(16, 8, decay=0.9)
    for _ in range(300):
        z = F.normalize(centres[torch.randint(16, (4, 64))] + 0.02 * torch.randn(4, 64, 8), dim=-1)
        q(z.requires_grad_())
        q.update()
    nearest = (centres @ q.codebook.T).max(1)
    assert nearest.indices.unique().numel() == 16
    assert nearest.values.min() > 0.99


def test_dead_codes_and_their_statistics_are_restarted_from_the_batch() -> None:
    q = quantizer(4, 2, normalize=False, decay=0.5)
    q.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [100.0, 0.0], [200.0, 0.0]]))
    q.restart_statistics()
    z = torch.tensor([[[0.1, 0.0], [0.9, 0.0], [0.05, 0.0], [1.1, 0.0]]], requires_grad=True)
    for _ in range(8):
        q(z)
        stats = q.update()
        if stats["codebook_restarts"]:
            break
    assert stats["codebook_restarts"] == 2
    batch = z.detach()[0]
    for code in (2, 3):
        assert (batch - q.codebook[code]).abs().sum(1).min() < 1e-6
        torch.testing.assert_close(q.statistics.sum[code], q.codebook[code] * q.statistics.count[code])
        assert q.statistics.count[code] > 0.5  # set to the mean count, so that it is not dead again at once


def test_small_batch_does_not_restart_large_codebook_at_every_step() -> None:
    """With raw counts as printed in the paper, nearly all of 1,024 codes would count as dead at 64 vectors per step."""
    torch.manual_seed(0)
    q = quantizer(1024, 8)
    pool = F.normalize(torch.randn(4096, 8), dim=1)
    restarts = []
    for _ in range(400):
        q(pool[torch.randint(4096, (1, 64))].requires_grad_())
        restarts.append(q.update()["codebook_restarts"])
    assert sum(restarts[-50:]) / 50 < 0.02 * 1024


def test_more_dead_codes_than_vectors_get_distinct_vectors() -> None:
    q = quantizer(32, 4)
    q.bypass = True
    q(torch.randn(1, 5, 4, requires_grad=True))
    q.update()
    assert torch.pdist(q.codebook).min() > 0


def test_bypass_returns_unquantized_vectors_and_updates_codebook() -> None:
    q = quantizer(8, 4)
    q.bypass = True
    z = torch.randn(2, 16, 4, requires_grad=True)
    result = q(z)
    torch.testing.assert_close(result.latents, F.normalize(z, dim=-1))
    assert not result.losses
    q.update()
    vectors = F.normalize(z.detach(), dim=-1).flatten(0, 1)
    assert (q.codebook @ vectors.T).max(1).values.min() > 1 - 1e-6


def test_frozen_eval_and_no_grad_passes_do_not_change_codebook() -> None:
    q = quantizer()
    before = q.codebook.clone()
    z = torch.randn(2, 50, 4)
    q.frozen = True
    q(z.requires_grad_())
    q.update()
    q.frozen = False
    with torch.no_grad():
        q(z)
    q.update()
    q.eval()(z)
    q.update()
    assert torch.equal(q.codebook, before)


def test_forward_without_update_keeps_bounded_number_of_vectors() -> None:
    q = quantizer(8, 4)
    for _ in range(300):
        q(torch.randn(1, 1000, 4, requires_grad=True))
    assert sum(len(rows) for rows in q._pool) <= 1 << 16
    q.update()
    assert q._pending is None
    assert q._pool == []


def test_lookup_of_codes_equals_latents_in_eval_mode() -> None:
    q = quantizer(64, 4).eval()
    result = q(torch.randn(3, 10, 4))
    assert torch.equal(q.lookup(result.codes), result.latents)
