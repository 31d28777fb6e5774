"""The decoder equals Llama's, except for its positions, which may have several axes."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from imtok.layers.decoder import Decoder, apply_rotary
from imtok.layers.positions import RotaryEmbedding, grid_positions


@torch.no_grad()
def test_decoder_output_equals_transformers_llama() -> None:
    torch.manual_seed(0)
    ours = Decoder(64, depth=2, num_heads=4).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaModel(LlamaConfig(vocab_size=8, rms_norm_eps=1e-5, **sizes)).eval()
    weights = {"embed_tokens.weight": torch.zeros(8, 64), "norm.weight": ours.norm.weight}
    for index, block in enumerate(ours.blocks):
        attention, forward = block.attention, block.feed_forward
        gate, up = forward.gate_and_up.weight.chunk(2)
        parts = dict(zip("qkv", attention.qkv.weight.chunk(3), strict=True))
        found = {f"self_attn.{part}_proj": weight for part, weight in parts.items()}
        found |= {"self_attn.o_proj": attention.out.weight, "mlp.gate_proj": gate, "mlp.up_proj": up}
        found |= {"mlp.down_proj": forward.down.weight, "input_layernorm": block.norm1.weight}
        found |= {"post_attention_layernorm": block.norm2.weight}
        weights |= {f"layers.{index}.{name}.weight": weight for name, weight in found.items()}
    theirs.load_state_dict(weights)
    x = torch.randn(2, 7, 64)
    rotation = RotaryEmbedding(torch.arange(7.0)[:, None], 16)()
    torch.testing.assert_close(ours(x, rotation), theirs(inputs_embeds=x).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_rotary_products_on_a_grid_depend_on_relative_position() -> None:
    torch.manual_seed(0)
    rotation = RotaryEmbedding(grid_positions((4, 5)), 8)()
    query, key = torch.randn(2, 8)

    def product(one: tuple[int, int], other: tuple[int, int]) -> Tensor:
        rotated = [apply_rotary(vector.expand(1, 20, 1, 8), rotation)[0, :, 0] for vector in (query, key)]
        return rotated[0][one[0] * 5 + one[1]] @ rotated[1][other[0] * 5 + other[1]]

    torch.testing.assert_close(product((0, 1), (2, 0)), product((1, 4), (3, 3)))
    for moved in ((2, 1), (1, 0), (0, 2)):  # along rows, along columns, and mirrored
        assert product((0, 1), moved).item() != pytest.approx(product((0, 1), (2, 0)).item(), abs=1e-3)
