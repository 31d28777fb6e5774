"""The README's code and commands, run unchanged except for smaller inputs where they would take hours."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

import imtok
from imtok import pretrained
from imtok.cli import main
from imtok.tokenizers import shipped

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(start: str) -> str:
    """Return the first fenced block that contains `start`, without the line that names its language."""
    found = next(fenced for fenced in README.split("```")[1::2] if start in fenced)
    return found.partition("\n")[2]


def test_readme_python_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sign.jpg", "face.jpg"):
        Image.fromarray(data.astronaut()).save(name)
    names: dict[str, object] = {}
    exec(compile(block("load_tokenizer"), "README.md", "exec"), names)
    encoding = names["encoding"]
    assert encoding.codes.shape == (2, 256, 1)
    assert encoding.latents.shape == (2, 256, 32)
    assert len(list(Path("out").glob("*.png"))) == 2
    assert names["fresh"].codebook_sizes == (8192,)


def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs) -> None:
    for network in ("text_detector/ppocrv6", "face_detector/mtcnn", "text_features/ppocrv6"):
        needs(network)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for angle in range(4):  # the minimum for the recall metric
        Image.fromarray(data.astronaut()).resize((128, 128)).rotate(angle).save(f"photos/face-{angle}.png")
    lines = [line.split("#")[0].split() for line in block("imtok annotate").splitlines()]
    commands = {line[1]: line[1:] for line in reversed(lines) if line[:1] == ["imtok"]}  # the first line of each verb
    smaller = {"2000": "16", "300": "4", "animal": "0"}
    for verb in ("synthesize", "annotate", "train", "encode"):
        assert main([smaller.get(word, word) for word in commands[verb]]) == 0
    assert main(["train", "far-debug", "--data", "codes/signs", "--out", "runs/far"]) == 0
    assert main([smaller.get(word, word) for word in commands["generate"]]) == 0
    assert len(list(Path("drawn").glob("*.png"))) == 4
    assert main(commands["evaluate-generated"]) == 0
    assert "class_score_efficientnet_lite0" in Path("scores-drawn/metrics.json").read_text()
    assert Path("runs/try/model.safetensors").exists()
    assert main(["reconstruct", "runs/try", "photos", "--out", "out"]) == 0
    for verb in ("synthesize", "evaluate"):
        line = next(line for line in block("imtok reconstruct").splitlines() if line.startswith(f"imtok {verb}"))
        assert main([smaller.get(word, word) for word in line.split("#")[0].split()[1:]]) == 0
    assert Path("scores/report.html").exists()


def test_licence_page_lists_every_network_and_tokenizer() -> None:
    page = (Path(__file__).parents[1] / "docs" / "weights.md").read_text()
    assert [row.name for row in pretrained.status() if f"`{row.name}`" not in page] == []
    assert [name for name in shipped() if f"`{name}`" not in page] == []


def test_names_in_dir_exist_and_unknown_names_raise() -> None:
    for name in dir(imtok):
        assert getattr(imtok, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        imtok.paint  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_imtok_does_not_import_torch() -> None:
    subprocess.run([sys.executable, "-c", "import imtok, sys; assert 'torch' not in sys.modules"], check=True)
