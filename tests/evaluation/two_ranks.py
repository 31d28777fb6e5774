"""Run by test_ranks.py in two processes: commands one after another, and what each process answers and says.

python two_ranks.py FOLDER, which holds commands.json and gets RANK.json
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from imtok import pretrained
from imtok.cli import main
from imtok.layers.collective import process_group, rank

load = pretrained.load


def away(name: str, file: Any = None) -> Any:
    raise pretrained.MissingWeights(f"{name} is away")


def answers(folder: Path) -> None:
    found = []
    with process_group():
        for lacking, command, _ in json.loads((folder / "commands.json").read_text()):
            pretrained.load = away if lacking == rank() else load
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    code = main(command)
                except SystemExit as ended:
                    code = ended.code
            found.append((code, said.getvalue()))
        (folder / f"rank{rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    answers(Path(sys.argv[1]))
