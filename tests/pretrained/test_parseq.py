from pathlib import Path

import numpy as np
import pytest
import torch

from imtok.pretrained.parseq import VOCABULARY, PARSeq, _prepare, load_parseq


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, synthetic_state) -> PARSeq:
    path: Path = tmp_path_factory.mktemp("parseq") / "parseq.pt"
    unused = {"decoder.attention_norm.weight": torch.ones(384)}  # contained in older docTR files
    torch.save(synthetic_state(PARSeq()) | unused, path)
    return load_parseq(path).freeze()


def test_doctr_state_dict_gives_doctrs_logits(network: PARSeq, pattern, reference) -> None:
    """`references/make.py parseq` made the reference, with the same synthetic weights."""
    logits = network(pattern(32, 128))
    torch.testing.assert_close(logits[:, ::4, ::5], reference("parseq", "logits"), atol=1e-3, rtol=0)


def test_reading_stops_at_the_end_token(network: PARSeq, draw_word, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_forward(images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 33, len(VOCABULARY) + 1)
        for position, character in enumerate("Hi"):
            logits[:, position, VOCABULARY.index(character)] = 50
        logits[:, 2, len(VOCABULARY)] = 50
        return logits

    monkeypatch.setattr(network, "forward", fake_forward)
    (reading,) = network.read([draw_word("Hi")])
    assert reading.text == "Hi"
    assert reading.score == pytest.approx(1)
    assert network.read([]) == []


@pytest.mark.parametrize(("size", "filled"), [((16, 32), (32, 64)), ((10, 200), (6, 128)), ((32, 128), (32, 128))])
def test_crops_keep_their_aspect_ratio_and_are_padded_with_black(size, filled) -> None:
    prepared = _prepare(np.full((*size, 3), 255, np.uint8))
    white = prepared[0] > 0
    assert white.sum() == filled[0] * filled[1]
    assert white[: filled[0], : filled[1]].all()
