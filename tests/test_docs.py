"""What the maps of the papers point at is there, and Python's page runs."""

import ast
import re
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", sorted((ROOT / "docs/papers").glob("*.md")), ids=lambda page: page.stem)
def test_every_file_and_name_of_a_paper_s_map_exists(page: Path) -> None:
    for file, names in re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", page.read_text()):
        place = next((home / file for home in (ROOT / "src/imtok", ROOT) if (home / file).exists()), None)
        assert place is not None, file
        scope: list[ast.stmt] = ast.parse(place.read_text()).body
        for name in filter(None, names.split(".")):
            found = [one for one in scope if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == name]
            assert found, f"{file} defines no {names}"
            scope = found[0].body


@pytest.mark.slow
def test_the_lines_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs) -> None:
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
