"""Fixtures that more than one file of tests of the evaluation uses."""

import dataclasses
from pathlib import Path

import pytest
import torch

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.config import to_dict
from imtok.data.vocabulary import LABELS
from imtok.tokenizers.catalog import build
from imtok.tokenizers.text import LABELS as BY_CLASS
from imtok.tokenizers.text import TextConfig


@pytest.fixture
def hearing(tmp_path: Path) -> str:
    """An untrained tokenizer that hears of classes, in a run folder."""
    torch.manual_seed(0)
    config = presets.get("textok-debug")
    text = TextConfig(encoder=BY_CLASS, dim=len(LABELS), classes=LABELS)
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, text=text))
    run = RunFolder(tmp_path / "hearing")
    run.write_config(to_dict(config))
    run.write_model(build(config.tokenizer).weights())
    return str(run.path)
