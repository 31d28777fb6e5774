"""The files and names that docs/papers refers to exist, and the code of docs/python.md runs."""

import ast
import re
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", sorted((ROOT / "docs/papers").glob("*.md")), ids=lambda page: page.stem)
def test_files_and_names_in_paper_docs_exist(page: Path) -> None:
    for file, names in re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", page.read_text()):
        path = next((folder / file for folder in (ROOT / "src/imtok", ROOT) if (folder / file).exists()), None)
        assert path is not None, file
        scope: list[ast.stmt] = ast.parse(path.read_text()).body
        for name in filter(None, names.split(".")):
            found = [node for node in scope if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
            assert found, f"{file} defines no {names}"
            scope = found[0].body


@pytest.mark.slow
def test_code_of_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs) -> None:
    for network in ("text_features/ppocrv6", "text_encoder/minilm"):
        needs(network)
    monkeypatch.chdir(tmp_path)
    for name in ("sign.jpg", "face.jpg"):
        Image.fromarray(data.astronaut()).save(name)
    names: dict[str, object] = {}
    for block in (ROOT / "docs/python.md").read_text().split("```python\n")[1:]:
        exec(compile(block.partition("```")[0], "python.md", "exec"), names)
    assert len(list(Path("reconstructed").glob("*.png"))) == len(list(Path("drawn").glob("*.png"))) == 2
    assert Path("scores/report.html").exists()
    assert Path("scores-drawn/metrics.json").exists()
