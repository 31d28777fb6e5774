"""Vision encoders of CLIP and DINOv2: small instances of the transformers library's classes, saved and loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from imtok.config import ConfigError
from imtok.data.pictures import from_uint8
from imtok.pretrained import REGISTRY, MissingWeights, load
from imtok.pretrained.vit import load_clip, load_dinov2

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_clip_outputs_its_class_token_before_the_last_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(vision_config={**SMALL, "patch_size": 14}, text_config=SMALL)).eval()
    tensors = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(257)[None]  # as in files of older versions
    save_file(tensors, tmp_path / "clip.safetensors")
    network = load_clip(tmp_path / "clip.safetensors", **SMALL, patch_size=14).freeze()
    picture = np.ascontiguousarray(data.astronaut()[:224, 100:324])
    pixels = CLIPImageProcessor(do_resize=False, do_center_crop=False)(Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
        states = clip.vision_model(pixel_values=pixels["pixel_values"])
        ours = network.embed(from_uint8(picture)[None])
    assert network.embed_dim == ours.shape[1] == 32
    assert torch.allclose(ours, states.last_hidden_state[:, 0], atol=1e-4)
    assert not torch.allclose(ours, states.pooler_output, atol=1e-2)
    with torch.no_grad():
        assert network.embed(torch.rand(2, 3, 64, 80) * 2 - 1).shape == (2, 32)


def test_dinov2_outputs_its_class_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 14, "image_size": 70}
    model = Dinov2Model(Dinov2Config(**settings)).eval()
    save_file(model.state_dict(), tmp_path / "dino.safetensors")
    network = load_dinov2(tmp_path / "dino.safetensors", **settings).freeze()
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        assert torch.allclose(network.embed(images), model(pixel_values=pixels).pooler_output, atol=1e-4)


def test_full_sizes_match_the_papers_target_networks() -> None:
    with torch.device("meta"):
        from imtok.pretrained import vit

        sizes = {}
        for name in ("load_clip_l14", "load_clip_b16", "load_dinov2_small"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(vit, "load_named", lambda *arguments, **options: None)
                network = getattr(vit, name)(Path("nowhere"))
                count = sum(p.numel() for p in network.parameters()) / 1e6
                sizes[name] = (network.embed_dim, round(count))
    assert sizes == {"load_clip_l14": (1024, 303), "load_clip_b16": (768, 86), "load_dinov2_small": (384, 22)}


@pytest.mark.usefixtures("no_own_weights")
def test_reports_missing_and_mismatched_weights(tmp_path: Path) -> None:
    for name in (name for name in REGISTRY if name.startswith(("vision/clip", "vision/dino"))):
        with pytest.raises(MissingWeights, match=rf"{name} is missing.*`imtok weights fetch {name}` gets hf://"):
            load(name)
    save_file({"vision_model.embeddings.class_embedding": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="not the weights of"):
        load("vision/clip_vit_b16", tmp_path / "other.safetensors")
