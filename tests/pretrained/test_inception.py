"""Inception-v3 with random weights: outputs equal those of torch-fidelity's class, and nothing is unpickled."""

import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from imtok import pretrained
from imtok.config import ConfigError
from imtok.pretrained.inception import load_inception


@pytest.fixture(scope="module")
def theirs():
    """torch-fidelity's network as initialized by its constructor, without loaded weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)

    class Untrained(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state, **options):
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Untrained("inception-v3-compat", ["768", "2048", "logits_unbiased"], empty)


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(theirs.state_dict(), file)
    return file


def test_features_and_logits_match_torch_fidelity(theirs, weights: Path) -> None:
    network = pretrained.load("vision/inception", file=weights)
    pixels = torch.randint(0, 256, (2, 3, 40, 52), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        middle, pooled, logits = theirs(pixels)
        found = network.extract_features(pixels / 127.5 - 1)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-6)
    assert middle.shape == (2, 768)
    assert len(network.sha256) == 64
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_spatial_features_are_seven_channels_of_the_block_adm_uses(theirs, weights: Path) -> None:
    """mixed_6 of TensorFlow's graph is Mixed_6d; computed here from its input, with the layer's own weights."""
    network = load_inception(weights).freeze()
    inputs: list[torch.Tensor] = []
    handle = theirs.Mixed_6d.register_forward_hook(lambda module, given, out: inputs.append(given[0]))
    pixels = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    with torch.no_grad():
        theirs(pixels)
        spatial = network.extract_features(pixels / 127.5 - 1).spatial
    handle.remove()
    branch = theirs.Mixed_6d.branch1x1
    norm = branch.bn
    maps = F.conv2d(inputs[0], branch.conv.weight)
    maps = F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()
    assert spatial.shape == (1, 7 * 17 * 17)
    for row, column, channel in [(0, 0, 0), (0, 0, 6), (0, 1, 0), (3, 5, 2), (16, 16, 6)]:
        # The order of ADM's statistics: channels innermost, as in TensorFlow.
        index = (row * 17 + column) * 7 + channel
        torch.testing.assert_close(spatial[0, index], maps[0, channel, row, column], rtol=1e-5, atol=1e-6)


def test_rejects_other_files_with_a_one_line_error(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="not torch-fidelity's weights of Inception-v3") as caught:
        load_inception(tmp_path / "other.pth")
    assert "\n" not in str(caught.value)
    torch.save({"fc.weight": Path("anything")}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match="refused: holds more than tensors"):
        load_inception(tmp_path / "code.pth")
