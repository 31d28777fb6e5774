"""Models of diffusers as tokenizers, compared with diffusers' own encode and decode."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

import imtok
from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.cli import main
from imtok.config import ConfigError
from imtok.data.pictures import decode, read_bytes
from imtok.data.token_shards import TokenShards
from imtok.evaluation.reconstructors import FolderReconstructor, open_reconstructor
from imtok.evaluation.teachers import UNKNOWN, teachers_behind
from imtok.generators import catalog as generators
from imtok.pretrained.packages import sha256_of
from imtok.tokenizers.catalog import hash_of
from imtok.tokenizers.encode import encode_pictures
from imtok.training.launch import train

BLOCKS = {"block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
ENCODER = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
LEVELS = {"latent_channels": 8, "attention_head_dim": 4}
LEVELS |= {f"{side}_block_out_channels": (8, 8, 16) for side in ("encoder", "decoder")}
LEVELS |= {f"{side}_layers_per_block": (0, 1, 1) for side in ("encoder", "decoder")}
LEVELS |= {f"{side}_qkv_multiscales": ((), (), (5,)) for side in ("encoder", "decoder")}
LEVELS |= {f"{side}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock") for side in ("encoder", "decoder")}
SPATIAL = {"norm_type": "spatial", "lookup_from_codebook": True, "block_out_channels": (32, 32, 32)}
MODELS = {
    "vq": lambda: diffusers.VQModel(**BLOCKS, **ENCODER, latent_channels=4, vq_embed_dim=3, num_vq_embeddings=32),
    "movq": lambda: diffusers.VQModel(**BLOCKS | ENCODER | SPATIAL, latent_channels=4, num_vq_embeddings=32),
    "kl": lambda: diffusers.AutoencoderKL(**BLOCKS, **ENCODER, latent_channels=4, shift_factor=0.1),
    "dc": lambda: diffusers.AutoencoderDC(**LEVELS, scaling_factor=0.4),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of untrained models, written by `save_pretrained`."""
    paths = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make().eval()
        if hasattr(model, "quantize"):
            torch.nn.init.normal_(model.quantize.embedding.weight, std=0.3)
        paths[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(paths[name])
    return paths


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, (left, top) in {"eye": (60, 90), "hat": (0, 10)}.items():
        Image.fromarray(data.astronaut()[top : top + 50, left : left + 38]).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def original(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder, local_files_only=True)


def images(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["vq", "movq"])
@torch.no_grad()
def test_vq_models_match_codes_and_images_of_diffusers(folders: dict[str, Path], name: str) -> None:
    tokenizer, model, pictures = imtok.load_tokenizer(str(folders[name])), original(folders[name]), images(32, 48)
    encoding = tokenizer.encode(pictures)
    unquantized = model.encode(pictures).latents
    quantized, _, (_, _, codes) = model.quantize(unquantized)
    assert encoding.codes is not None
    assert torch.equal(encoding.codes.flatten(), codes)
    assert len(torch.unique(codes)) > 4
    assert (encoding.grid_size, encoding.image_size) == ((8, 12), (32, 48))
    assert torch.allclose(encoding.latents.transpose(1, 2).unflatten(2, (8, 12)), quantized, atol=1e-6)
    decoded = tokenizer.decode(encoding.latents, grid_size=(8, 12))
    assert torch.allclose(decoded, model.decode(unquantized).sample, atol=1e-5)
    assert torch.equal(decoded, tokenizer.decode_codes(encoding.codes, grid_size=(8, 12)))
    assert (tokenizer.codebook_sizes, tokenizer.bits_per_token) == ((32,), 5.0)
    assert tokenizer.branch_dims == (encoding.latents.shape[2],)


@pytest.mark.parametrize("name", ["kl", "dc"])
@torch.no_grad()
def test_continuous_models_match_latents_and_images_of_diffusers(folders: dict[str, Path], name: str) -> None:
    tokenizer, model, pictures = imtok.load_tokenizer(str(folders[name])), original(folders[name]), images(32, 48)
    output = model.encode(pictures)
    expected = output.latent_dist.mean if name == "kl" else output.latent
    encoding = tokenizer.encode(pictures)
    assert encoding.codes is None
    assert torch.equal(encoding.latents, expected.flatten(2).transpose(1, 2))
    decoded = tokenizer.decode(encoding.latents, grid_size=(8, 12))
    assert torch.allclose(decoded, model.decode(expected).sample, atol=1e-5)
    channels = {"kl": 4, "dc": 8}[name]
    assert (tokenizer.codebook_sizes, tokenizer.bits_per_token) == ((), 32.0 * channels)
    with pytest.raises(TypeError):
        tokenizer.lookup(torch.zeros(1, 96, 1, dtype=torch.long))


@pytest.mark.parametrize("name", list(MODELS))
def test_image_sizes_not_divisible_by_patch_size_are_padded(folders: dict[str, Path], name: str) -> None:
    tokenizer, pictures = imtok.load_tokenizer(str(folders[name])), images(29, 34)
    reconstruction = tokenizer.reconstruct(pictures)
    assert reconstruction.shape == pictures.shape
    padded = torch.nn.functional.pad(pictures, (0, 2, 0, 3), mode="replicate")
    assert torch.allclose(reconstruction, tokenizer.reconstruct(padded)[:, :, :29, :34])


@pytest.mark.parametrize("name", ["vq", "kl", "dc"])
def test_cli_commands_accept_diffusers_folder(
    folders: dict[str, Path], name: str, photos: Path, tmp_path: Path
) -> None:
    folder, out = str(folders[name]), tmp_path / "out"
    assert main(["reconstruct", folder, str(photos), "--out", str(out)]) == 0
    assert decode(read_bytes(out / "eye.png"), "eye").shape == (50, 38, 3)
    options = ["--data", str(photos), "--metrics", "psnr", "bits_per_pixel", "--out", str(out)]
    assert main(["evaluate", folder, *options, "--no-checks"]) == 0
    report = json.loads((out / "metrics.json").read_text())
    assert report["tokenizers"][name]["teachers"] == [UNKNOWN]
    rows = report["results"]
    tokens, bits = math.ceil(50 / 4) * math.ceil(38 / 4), {"vq": 5, "kl": 32 * 4, "dc": 32 * 8}[name]
    assert [row["tokenizer"] for row in rows] == [name]
    assert rows[0]["metrics"]["bits_per_pixel"]["value"] == pytest.approx(tokens * bits / (38 * 50))
    assert main(["encode", folder, str(photos), str(tmp_path / "codes"), "--resolution", "36"]) == 0
    shards = TokenShards(tmp_path / "codes")
    with pytest.raises(ConfigError, match="does not say what size of pictures"):
        encode_pictures(folder, photos, tmp_path / "codes")
    assert shards.manifest.sha256 == hash_of(folder) == sha256_of(folders[name] / "diffusion_pytorch_model.safetensors")
    assert (shards.manifest.grid_size, shards.manifest.tokens) == ((9, 9), 81)
    assert shards[0].values.shape == (1, 81, {"vq": 1, "kl": 4, "dc": 8}[name])
    assert np.isfinite(shards[0].values).all()
    run = RunFolder(tmp_path / "generator")
    generators.copy_tokenizer(shards.manifest, run)
    location = generators.locate_tokenizer(generators.reference(shards.manifest), run)
    run.write_config({"tokenizer": {"name": generators.reference(shards.manifest).name}})
    assert teachers_behind(str(run.path)) == {UNKNOWN}
    assert imtok.load_tokenizer(location).encode(images(32, 32)).latents.shape[1] == 64


def test_dit_pipeline_decodes_with_diffusers_autoencoder(
    folders: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    for name in ("eye", "hat"):
        (photos / name).mkdir()
        (photos / f"{name}.png").rename(photos / name / "one.png")
    folder = shutil.copytree(folders["kl"], tmp_path / "vae")
    encode_pictures(str(folder), photos, tmp_path / "latents", 24)
    base = presets.get_generator("dit-debug")
    training = dataclasses.replace(base.training, steps=2, global_batch_size=2, preview_every=0)
    run = train(dataclasses.replace(base, training=training), str(tmp_path / "latents"), tmp_path / "run")
    shutil.rmtree(folder)  # the run folder holds a copy of it
    pipeline = imtok.load_generator(str(run))
    config = pipeline.generator.config
    assert (config.token_shape, config.channels, config.classes) == ((6, 6), 4, ("eye", "hat"))
    latents = pipeline.generator.sample(["hat"], [1], pipeline.sampling)
    grid = latents.transpose(1, 2).unflatten(2, (6, 6))
    with torch.no_grad():  # the latents have the autoencoder's scale, not that of the network's inputs
        expected = original(folders["kl"]).decode(grid).sample.clamp(-1, 1)
    assert torch.allclose(pipeline.generate(["hat"], seed=1), expected, atol=1e-5)


def test_pipeline_folder_loads_its_autoencoder(folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    shutil.copytree(folders["vq"], pipeline / "vqvae")
    (pipeline / "model_index.json").write_text("{}")
    reconstructor = open_reconstructor(str(pipeline))
    assert (reconstructor.name, reconstructor.codebook_sizes) == ("pipeline", (32,))
    assert hash_of(str(pipeline)) == hash_of(str(folders["vq"]))


def test_loads_half_precision_weights_with_old_names(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["kl"], tmp_path / "half")
    file = tmp_path / "half" / "diffusion_pytorch_model.safetensors"
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, before in old_names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        tensors[name] = tensor.bfloat16()
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, file)
    tokenizer, pictures = imtok.load_tokenizer(str(tmp_path / "half")), images(16, 16)
    assert {tensor.dtype for tensor in tokenizer.weights().values()} == {torch.float32}
    expected = original(folders["kl"]).bfloat16().float().encode(pictures).latent_dist.mean
    assert torch.allclose(tokenizer.encode(pictures).latents, expected.flatten(2).transpose(1, 2))


def load_error(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        imtok.load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def copy_with_settings(folder: Path, copy: Path, **settings: object) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | settings))
    return copy


def test_rejects_unsupported_models_misfit_weights_and_no_diffusers(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kl = folders["kl"]
    assert "is a UNet2DModel of diffusers" in load_error(
        copy_with_settings(kl, tmp_path / "unet", _class_name="UNet2DModel")
    )
    assert "describes no AutoencoderKL" in load_error(copy_with_settings(kl, tmp_path / "odd", block_out_channels=[8]))
    assert "from 4 channels to 3" in load_error(copy_with_settings(kl, tmp_path / "rgba", in_channels=4))
    assert "has the shape (8, 16, 3, 3), not (10, 16, 3, 3)" in load_error(
        copy_with_settings(kl, tmp_path / "deep", latent_channels=5)
    )
    assert "quantize.embedding.weight is not part of it" in load_error(
        copy_with_settings(folders["vq"], tmp_path / "other", _class_name="AutoencoderKL")
    )
    file = "diffusion_pytorch_model.safetensors"
    truncated = copy_with_settings(kl, tmp_path / "cut")
    (truncated / file).write_bytes((kl / file).read_bytes()[:5000])
    assert "not a readable checkpoint" in load_error(truncated)
    (truncated / file).unlink()
    assert f"has no {file}" in load_error(truncated)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'diffusers>=0.35'" in load_error(kl)


def test_pickled_weights_are_rejected_without_execution(folders: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    folder = copy_with_settings(folders["kl"], tmp_path / "pickled")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": Payload()}, folder / "diffusion_pytorch_model.bin")
    assert "from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)" in load_error(folder)
    assert not marker.exists()


def test_folder_of_pictures_opens_as_folder_reconstructor(photos: Path) -> None:
    assert isinstance(open_reconstructor(str(photos)), FolderReconstructor)
