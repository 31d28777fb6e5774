"""Inputs and reference outputs for the networks in the registry; `references/make.py` documents how they were made."""

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

_REFERENCES = Path(__file__).parent / "references"
_MAKE = runpy.run_path(str(_REFERENCES / "make.py"))


@pytest.fixture(scope="session")
def pattern() -> Callable[..., torch.Tensor]:
    """`pattern(height, width, count=2)`: the pictures that the references were made from."""
    return lambda *size: torch.tensor(_MAKE["pattern"](*size))


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """The texts that the references were made from."""
    return list(_MAKE["SENTENCES"])


@pytest.fixture(scope="session")
def reference() -> Callable[[str, str], torch.Tensor]:
    """`reference(network, output)`: the output of the network's original code."""
    return lambda name, key: torch.tensor(json.loads((_REFERENCES / f"{name}.json").read_text())[key])


@pytest.fixture(scope="session")
def synthetic_state() -> Callable[[torch.nn.Module], dict[str, torch.Tensor]]:
    """A synthetic state dict for a network, derived from its tensors' names exactly as for the references."""

    def fill(network: torch.nn.Module) -> dict[str, torch.Tensor]:
        state = network.state_dict()
        shapes = {name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()}
        synthetic = _MAKE["synthetic_weights"](shapes)
        return state | {name: torch.tensor(value) for name, value in synthetic.items()}

    return fill


@pytest.fixture(scope="session")
def draw_word() -> Callable[..., np.ndarray]:
    """`draw_word(text, height=40)`: a crop with dark text on a light background, in Pillow's default font."""

    def draw(text: str, height: int = 40) -> np.ndarray:
        font = ImageFont.load_default(height * 0.7)
        width = round(font.getlength(text)) + height // 2
        picture = Image.new("RGB", (width, height), (235, 230, 220))
        ImageDraw.Draw(picture).text((width / 2, height / 2), text, fill=(40, 30, 60), font=font, anchor="mm")
        return np.array(picture)

    return draw


@pytest.fixture(scope="session")
def check_gradient() -> Callable[..., None]:
    """`check_gradient(network, outputs, images)`: a directional derivative against a finite difference, in float64.

    `outputs(network, images)` is a list of tensors; each adds the log of its mean square, so that all weigh equally.
    """

    def check(network: torch.nn.Module, outputs: Callable[..., list[torch.Tensor]], images: torch.Tensor) -> None:
        exact = copy.deepcopy(network).double()
        images = images.double().requires_grad_()

        def energy(images: torch.Tensor) -> torch.Tensor:
            return torch.stack([output.square().mean().log() for output in outputs(exact, images)]).sum()

        direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(energy(images), images)
        step = 1e-8  # a larger step crosses kinks of the ReLUs
        with torch.no_grad():
            difference = (energy(images + step * direction) - energy(images - step * direction)) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-3, atol=0)

    return check
