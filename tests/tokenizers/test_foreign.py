import json
import random
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import nn

from imtok import presets
from imtok.cli import main
from imtok.config import ConfigError
from imtok.data.pictures import decode, read_bytes
from imtok.tokenizers import VQGAN, load
from imtok.tokenizers.foreign import convert

REFERENCE = Path(__file__).parent / "reference"


@pytest.mark.parametrize("name", ["insighttok", "llamagen"])
def test_reference_checkpoint_matches_original_codes_and_images(name: str) -> None:
    """The files hold what the original classes computed in fp32 from random weights (see reference/README.md)."""
    model = load(str(REFERENCE / f"{name}_tiny.pt"))
    expected = load_file(REFERENCE / f"{name}_tiny_io.safetensors")
    with torch.no_grad():
        encoding = model.encode(expected["images"])
        reconstruction = model.decode(encoding.latents)
    assert encoding.codes is not None
    assert torch.equal(encoding.codes[..., 0], expected["codes"].long())
    assert (reconstruction - expected["reconstruction"]).abs().max() < 1e-4


def key_list(name: str) -> dict[str, list[int]]:
    return json.loads((REFERENCE / f"{name}_keys.json").read_text())


@pytest.mark.parametrize(
    ("name", "millions"), [("insighttok", 426.0), ("llamagen", 71.9), ("fqgan_dual", 111.3), ("fqgan_triple", 131.7)]
)
def test_full_size_key_list_loads_completely(name: str, millions: float) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in key_list(name).items()}
    config, weights = convert(state, name)
    with torch.device("meta"):
        model = VQGAN(config)
    own = model.weights()
    assert {key: tensor.shape for key, tensor in own.items()} == {key: t.shape for key, t in weights.items()}
    assert sum(tensor.numel() for tensor in own.values()) / 1e6 == pytest.approx(millions, abs=0.1)


def fqgan_state(name: str) -> dict[str, torch.Tensor]:
    """Random tensors with FQGAN's names, a quarter as wide, in random order."""
    torch.manual_seed(0)
    state = {}
    for key, shape in key_list(name).items():
        tensor = torch.randn([side // 4 if side >= 128 else side for side in shape])
        tensor /= max(100, tensor[0].numel()) ** 0.5
        state[key] = 1 + tensor if re.search(r"(norm|ln_)\w*\.weight$", key) else tensor
    return dict(random.Random(0).sample(sorted(state.items()), len(state)))


def adapter_of(state: dict[str, torch.Tensor], stem: str) -> nn.Sequential:
    """An adapter built from torch's own transformer layers, with the weights of FQGAN's adapter at `stem`."""
    width = state[f"{stem}.ln_pre.weight"].shape[0]
    layers = []
    for index in range(6):
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        theirs = {"self_attn": "attn", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2"}
        names = {key: key.replace(key.split(".")[0], theirs[key.split(".")[0]], 1) for key in layer.state_dict()}
        layer.load_state_dict({key: state[f"{stem}.transformer.{index}.{name}"] for key, name in names.items()})
        layers.append(layer)
    first, last = nn.LayerNorm(width), nn.LayerNorm(width)
    first.load_state_dict({kind: state[f"{stem}.ln_pre.{kind}"] for kind in ("weight", "bias")})
    last.load_state_dict({kind: state[f"{stem}.ln_post.{kind}"] for kind in ("weight", "bias")})
    return nn.Sequential(first, *layers, last).eval()


@pytest.mark.parametrize(("name", "branches"), [("fqgan_dual", "vis sem"), ("fqgan_triple", "vis sem_mid sem_high")])
@torch.no_grad()
def test_fqgan_equals_computation_with_torch_layers(name: str, branches: str) -> None:
    """No outputs of the original are available. The encoder and decoder are LlamaGen's, which are checked above."""
    state = fqgan_state(name)
    config, weights = convert(state, name)
    model = VQGAN(config)
    model.load_weights(weights)
    model.eval()
    images = torch.rand(2, 3, 128, 128) * 2 - 1
    encoding = model.encode(images)
    features = images
    for part, module in model.encoder.named_children():
        features = features if part == "branches" else module(features)  # 2, 128, 8, 8
    vectors, codes, latents = [], [], []
    for branch in branches.split():
        stem = "encoder." + branch.replace("vis", "visual_head").replace("sem", "semantic_head") + ".0"
        tokens = features.flatten(2).transpose(1, 2) + state[f"{stem}.positional_embedding"]
        own = adapter_of(state, stem)(tokens).transpose(1, 2).unflatten(2, (8, 8))
        norm, conv = f"encoder.norm_out_{branch}", f"encoder.conv_out_{branch}"
        own = F.silu(F.group_norm(own, 32, state[f"{norm}.weight"], state[f"{norm}.bias"], 1e-6))
        own = F.conv2d(own, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        own = F.conv2d(own, state[f"quant_conv_{branch}.weight"], state[f"quant_conv_{branch}.bias"])
        vectors.append(own.flatten(2).transpose(1, 2))
        codebook = F.normalize(state[f"quantize_{branch}.embedding.weight"], dim=1)
        codes.append(torch.cdist(F.normalize(vectors[-1], dim=2), codebook).argmin(2))
        latents.append(codebook[codes[-1]])
    assert torch.allclose(model.encode_unquantized(images), torch.cat(vectors, dim=2), atol=1e-4)
    assert encoding.codes is not None
    assert torch.equal(encoding.codes, torch.stack(codes, dim=2))
    assert torch.allclose(encoding.latents, torch.cat(latents, dim=2), atol=1e-6)
    assert len(torch.unique(encoding.codes)) > 50
    grid = encoding.latents.transpose(1, 2).unflatten(2, (8, 8))
    merged = F.conv2d(grid, state["post_quant_conv.weight"], state["post_quant_conv.bias"])
    assert torch.allclose(model.decoder.from_latents(grid), merged)
    assert torch.equal(model.decode_codes(encoding.codes), model.decode(encoding.latents))
    assert model.reconstruct(images[:, :, :100, :70]).shape == (2, 3, 100, 70)


def test_fqgan_checkpoint_configs_equal_presets() -> None:
    for name in ("fqgan_dual", "fqgan_triple"):
        state = {key: torch.empty(shape, device="meta") for key, shape in key_list(name).items()}
        assert convert(state, name)[0] == presets.get(name.replace("_", "-")).tokenizer


def test_fqgan_loads_four_branches_and_rejects_misfit_tensors() -> None:
    state = fqgan_state("fqgan_dual")
    fourth = {key.replace("sem", "sem_10"): tensor for key, tensor in state.items() if "_sem" in key}
    fourth |= {k.replace("head", "head_10"): tensor for k, tensor in state.items() if "semantic_head" in k}
    third = {key.replace("_10", "_9"): tensor for key, tensor in fourth.items()}
    fourth["quantize_sem_10.embedding.weight"] = torch.zeros(7, 8)
    merge = {"post_quant_conv.weight": torch.zeros(64, 32, 1, 1)}
    config, weights = convert(state | fourth | third | merge, "four.pt")
    model = VQGAN(config)
    model.load_weights(weights)
    assert model.codebook_sizes == (4096, 4096, 4096, 7)
    with pytest.raises(ConfigError, match=r"x\.pt: imtok does not know where the channels of quantize_odd stand"):
        convert(state | {"quantize_odd.embedding.weight": torch.zeros(7, 8)}, "x.pt")
    with pytest.raises(ConfigError, match=r"x\.pt: encoder.third_head.0.ln_pre.bias has no place"):
        convert(state | {"encoder.third_head.0.ln_pre.bias": torch.zeros(1)}, "x.pt")
    narrow = state | {"quant_conv_sem.weight": torch.zeros(4, 64, 1, 1)}
    config, weights = convert(narrow, "x.pt")
    with pytest.raises(ConfigError, match=r"encoder.branches.1.to_latents.weight has the shape \(4, 64, 1, 1\), not"):
        VQGAN(config).load_weights(weights, "x.pt")
    with pytest.raises(ConfigError, match=r"x\.pt: its tensors have shapes"):
        convert(state | {"decoder.conv_in.weight": torch.zeros(1)}, "x.pt")


def test_training_only_tensors_are_skipped_by_name() -> None:
    state = fqgan_state("fqgan_dual")
    training_only = {"loss.discriminator.main.0.weight": torch.zeros(3), "discriminator.a": torch.zeros(3)}
    training_only |= {"model_ema.encoderconv_inweight": torch.zeros(3), "quantize_vis.codebook_used": torch.zeros(9)}
    assert convert(state | training_only, "x.pt")[1].keys() == convert(state, "x.pt")[1].keys()


def test_prefixes_of_ddp_and_torch_compile_are_removed() -> None:
    state = fqgan_state("fqgan_dual")
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    config, weights = convert(wrapped, "x.pt")
    assert config == convert(state, "x.pt")[0]
    assert weights.keys() == convert(state, "x.pt")[1].keys()


def taming_state() -> dict[str, torch.Tensor]:
    """Tensors with the names of taming's VQGAN: InsightTok's, without EMA statistics, with a loss network."""
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


def test_ibq_checkpoint_is_rejected_instead_of_read_as_taming() -> None:
    """IBQ has the same names, but selects codes by another rule; its checkpoints also hold averaged weights."""
    state = taming_state()
    averaged = {"model_ema.decay": torch.tensor(0.999), "model_ema.encoderconv_inweight": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"ibq\.ckpt: averaged weights .* largest dot product"):
        convert(state | averaged, "ibq.ckpt")
    statistics = {"quantize.embed_avg": state["quantize.embedding.weight"]}
    assert convert(state | averaged | statistics, "insighttok.ckpt")[0].quantizer.normalize


def test_running_statistics_are_not_mistaken_for_codebook() -> None:
    """The statistics of taming's EmbeddingEMA follow the codebook, and their names have the same prefix."""
    state = taming_state()
    codebook = state["quantize.embedding.weight"]
    state |= {"quantize.embedding.cluster_size": codebook[:, 0], "quantize.embedding.embed_avg": codebook + 1}
    assert torch.equal(convert(state, "taming")[1]["quantizer.codebook"], codebook)
    with pytest.raises(ConfigError, match=r"quantize\.embedding\.other has no place"):
        convert(taming_state() | {"quantize.embedding.other": codebook}, "x.pt")


def test_lightning_checkpoint_on_disk_loads(tmp_path: Path) -> None:
    torch.save({"state_dict": taming_state(), "global_step": 5}, tmp_path / "last.ckpt")
    assert isinstance(load(str(tmp_path / "last.ckpt")), VQGAN)


@pytest.mark.parametrize(
    ("name", "state", "rate"),
    [
        ("llamagen", lambda: torch.load(REFERENCE / "llamagen_tiny.pt", weights_only=True)["model"], 9 / 256),
        ("fqgan_dual", lambda: fqgan_state("fqgan_dual"), 24 / 256),
        ("fqgan_triple", lambda: fqgan_state("fqgan_triple"), 36 / 256),
        ("taming", taming_state, 9 / 256),
    ],
)
def test_commands_take_checkpoints(
    tmp_path: Path, name: str, state: Callable[[], dict[str, torch.Tensor]], rate: float
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(data.astronaut()[:64, 200:264]).save(tmp_path / "photos/a.png")
    torch.save({"state_dict": state()}, tmp_path / f"{name}.pt")
    file, photos, out = str(tmp_path / f"{name}.pt"), str(tmp_path / "photos"), tmp_path / "out"
    options = ["--metrics", "psnr", "bits_per_pixel", "--no-checks", "--out", str(out)]
    assert main(["evaluate", file, "--data", photos, *options]) == 0
    (result,) = json.loads((out / "metrics.json").read_text())["results"]
    assert result["metrics"]["bits_per_pixel"]["value"] == pytest.approx(rate)
    assert main(["reconstruct", file, photos, "--out", str(out / "drawn")]) == 0
    assert decode(read_bytes(out / "drawn/a.png"), "a").shape == (64, 64, 3)


def test_rejects_checkpoints_with_unknown_or_missing_tensors() -> None:
    with pytest.raises(ConfigError, match=r"x\.pt: not a tokenizer checkpoint that imtok knows"):
        convert({"layer.weight": torch.zeros(1)}, "x.pt")
    with pytest.raises(ConfigError, match="unknown layout"):
        convert({"quantize.embedding.weight": torch.zeros(1)}, "x.pt")
    incomplete = {name: tensor for name, tensor in taming_state().items() if name != "decoder.conv_in.weight"}
    with pytest.raises(ConfigError, match=r"x\.pt: incomplete, it lacks decoder.conv_in.weight"):
        convert(incomplete, "x.pt")
    with pytest.raises(ConfigError, match=r"encoder.down.0.surprise has no place"):
        convert(taming_state() | {"encoder.down.0.surprise": torch.zeros(1)}, "x.pt")


def test_checkpoint_with_code_is_rejected_without_execution(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="refused: holds more than tensors"):
        load(str(tmp_path / "evil.pt"))
    assert not marker.exists()


def test_lightning_checkpoint_with_class_as_key_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callback states have one of Lightning's classes as key, which the file names and loading does not execute."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = callback  # pyright: ignore[reportAttributeAccessIssue]
    state = torch.load(REFERENCE / "llamagen_tiny.pt", weights_only=True)["model"]
    callbacks = {callback: {"best_model_score": torch.tensor(0.5), "best_model_path": "/a/b.ckpt"}}
    torch.save({"epoch": 3, "state_dict": state, "callbacks": callbacks}, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert "pytorch_lightning" not in sys.modules
    loaded, original = load(str(tmp_path / "last.ckpt")), load(str(REFERENCE / "llamagen_tiny.pt"))
    for (key, value), (_, expected) in zip(loaded.weights().items(), original.weights().items(), strict=True):
        assert torch.equal(value, expected), key


def test_broken_and_missing_files_raise_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    whole = (REFERENCE / "llamagen_tiny.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"a": torch.zeros(1000)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut_old.pt").write_bytes((tmp_path / "old.pt").read_bytes()[:200])
    torch.save({1: torch.zeros(1)}, tmp_path / "unnamed.pt")
    whole = (REFERENCE / "llamagen_tiny_io.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in (
        *("broken.pt", "broken.safetensors", "absent.pt"),
        *("cut.pt", "cut_old.pt", "cut.safetensors", "unnamed.pt"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(str(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
