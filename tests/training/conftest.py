from pathlib import Path

import pytest
import torch

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.config import to_dict
from imtok.data.synthetic import synthesize
from imtok.tokenizers.encode import encode_pictures


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of synthetic `signs`, an untrained tokenizer with two codebooks (`dual`), and the signs' `codes`."""
    folder = tmp_path_factory.mktemp("generator")
    synthesize(str(folder / "signs"), count=24, size=64, word_height=(12.0, 24.0))
    torch.manual_seed(0)
    run = RunFolder(folder / "dual")
    run.write_config(to_dict(presets.get("fqgan-debug")))
    run.write_model(presets.create_tokenizer("fqgan-debug").weights())
    encode_pictures(str(run.path), str(folder / "signs"), folder / "codes", 64)
    return folder
