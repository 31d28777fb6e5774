"""Every kind of tokenizer in bf16, as users of other libraries load theirs, and the loading of a wrong run."""

import pytest
import torch

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.config import ConfigError, to_dict
from imtok.tokenizers.catalog import load


@pytest.mark.parametrize("preset", ["insighttok-debug", "fqgan-debug", "kl-nano", "textok-debug"])
@torch.no_grad()
def test_bf16_codes_and_latents_decode_to_equal_images(preset: str) -> None:
    torch.manual_seed(0)
    tokenizer = presets.create_tokenizer(preset).eval().to(torch.bfloat16)
    side = presets.get(preset).data.crop.resolution
    images = torch.rand(2, 3, side, side, dtype=torch.bfloat16) * 2 - 1
    text = None
    if tokenizer.text_config is not None:  # the states of a frozen text encoder are in fp32
        text = torch.randn(2, 4, tokenizer.text_config.dim), torch.ones(2, 4, dtype=torch.bool)
    encoding = tokenizer.encode(images, text)
    decoded = tokenizer.decode(encoding.latents, text, encoding.grid_size)
    assert decoded.dtype == encoding.latents.dtype == torch.bfloat16
    if encoding.codes is not None:
        assert torch.equal(tokenizer.decode_codes(encoding.codes, text, encoding.grid_size), decoded)


@pytest.mark.parametrize("tokenizer", [None, {"name": "tokenizer", "sha256": ""}])
def test_load_rejects_generator_run(tokenizer: object, tmp_path) -> None:
    RunFolder(tmp_path).write_config({"generator": to_dict(presets.get_generator("far-debug")), "tokenizer": tokenizer})
    with pytest.raises(ConfigError, match="holds no tokenizer, but another kind of model"):
        load(str(tmp_path))
