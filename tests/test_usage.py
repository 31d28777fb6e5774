"""The recipes and benchmarks accept the command line that their module docstrings show."""

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
def test_script_accepts_its_documented_usage(script: Path) -> None:
    name = script.relative_to(ROOT).as_posix()
    (usage,) = re.findall(rf"^ *python {re.escape(name)}(.*)$", script.read_text(), flags=re.MULTILINE)
    spec = importlib.util.spec_from_file_location(f"usage_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    calls: list[dict[str, Any]] = []

    @functools.wraps(module.main)
    def main(*_: Any, **options: Any) -> None:
        calls.append(options)

    tyro.cli(main, args=re.sub(r"[\[\]…]", "", usage).split())
    assert len(calls) == 1
