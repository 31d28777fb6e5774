"""What the maps of the papers point at is there."""

import ast
import re
from pathlib import Path

import pytest

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
