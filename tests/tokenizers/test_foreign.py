import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imtok.config import ConfigError
from imtok.tokenizers import VQGAN, load
from imtok.tokenizers.foreign import convert

REFERENCE = Path(__file__).parent / "reference"


@pytest.mark.parametrize("name", ["insighttok", "llamagen"])
def test_reference_checkpoint_gives_the_original_codes_and_pictures(name: str) -> None:
    """The files hold what the original classes computed in fp32 from random weights (see reference/README.md)."""
    model = load(str(REFERENCE / f"{name}_tiny.pt"))
    expected = load_file(REFERENCE / f"{name}_tiny_io.safetensors")
    with torch.no_grad():
        encoding = model.encode(expected["images"])
        drawn = model.decode(encoding.latents)
    assert encoding.codes is not None
    assert torch.equal(encoding.codes[..., 0], expected["codes"].long())
    assert (drawn - expected["reconstruction"]).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "millions"), [("insighttok", 426.0), ("llamagen", 71.9)])
def test_full_size_key_list_loads_completely(name: str, millions: float) -> None:
    shapes = json.loads((REFERENCE / f"{name}_keys.json").read_text())
    config, weights = convert({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, name)
    with torch.device("meta"):
        model = VQGAN(config)
    own = model.weights()
    assert {key: tensor.shape for key, tensor in own.items()} == {key: t.shape for key, t in weights.items()}
    assert sum(tensor.numel() for tensor in own.values()) / 1e6 == pytest.approx(millions, abs=0.1)


def taming_state() -> dict[str, torch.Tensor]:
    """The names of a taming-transformers VQGAN: those of InsightTok, without EMA statistics, with a loss network."""
    state = torch.load(REFERENCE / "insighttok_tiny.pt", weights_only=True)["model"]
    plain = {k: v for k, v in state.items() if not k.startswith("quantize.") or k == "quantize.embedding.weight"}
    return plain | {"loss.discriminator.main.0.weight": torch.zeros(3)}


def test_taming_codes_are_not_normalized() -> None:
    state = taming_state()
    state["quantize.embedding.weight"] = state["quantize.embedding.weight"].float() * 3
    config, weights = convert(state, "taming")
    assert not config.quantizer.normalize
    assert torch.equal(weights["quantizer.codebook"], state["quantize.embedding.weight"])
    model = VQGAN(config)
    model.load_weights(weights)
    assert model.eval().reconstruct(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_lightning_checkpoint_on_disk_loads(tmp_path: Path) -> None:
    torch.save({"state_dict": taming_state(), "global_step": 5}, tmp_path / "last.ckpt")
    assert isinstance(load(str(tmp_path / "last.ckpt")), VQGAN)


def test_other_checkpoints_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"x\.pt: not a tokenizer checkpoint that imtok knows"):
        convert({"layer.weight": torch.zeros(1)}, "x.pt")
    with pytest.raises(ConfigError, match="unknown layout"):
        convert({"quantize.embedding.weight": torch.zeros(1)}, "x.pt")
    incomplete = {name: tensor for name, tensor in taming_state().items() if name != "encoder.conv_out.weight"}
    with pytest.raises(ConfigError, match=r"x\.pt: incomplete, it lacks encoder.conv_out.weight"):
        convert(incomplete, "x.pt")
    with pytest.raises(ConfigError, match=r"encoder.down.0.surprise has no place"):
        convert(taming_state() | {"encoder.down.0.surprise": torch.zeros(1)}, "x.pt")


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="refused: holds more than tensors"):
        load(str(tmp_path / "evil.pt"))
    assert not marker.exists()


def test_broken_and_missing_files_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    for name in ("broken.pt", "broken.safetensors", "absent.pt"):
        with pytest.raises(ConfigError) as caught:
            load(str(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
