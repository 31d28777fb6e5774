"""The recipes and benchmarks take the command line that their first lines show."""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import tyro

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path
    for folder in ("recipes", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "tyro.cli" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_takes_the_usage_that_it_shows(script: Path) -> None:
    name = script.relative_to(ROOT).as_posix()
    (usage,) = re.findall(rf"^ *python {re.escape(name)}(.*)$", script.read_text(), flags=re.MULTILINE)
    spec = importlib.util.spec_from_file_location(f"usage_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    called: list[dict[str, Any]] = []

    @functools.wraps(module.main)
    def main(*_: Any, **options: Any) -> None:
        called.append(options)

    tyro.cli(main, args=re.sub(r"[\[\]…]", "", usage).split())
    assert len(called) == 1
