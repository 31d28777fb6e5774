"""Run commands one after another in the processes of test_ranks.py, and record each process's exit codes and output.

python two_ranks.py FOLDER

FOLDER contains commands.json; process N writes rankN.json there.
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

original_load = pretrained.load


def raise_missing_weights(name: str, file: Any = None) -> Any:
    raise pretrained.MissingWeights(f"{name} is away")


def run_commands(folder: Path) -> None:
    results = []
    with process_group():
        for rank_without_networks, command, _ in json.loads((folder / "commands.json").read_text()):
            pretrained.load = raise_missing_weights if rank_without_networks == rank() else original_load
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                try:
                    code = main(command)
                except SystemExit as exit_error:
                    code = exit_error.code
            results.append((code, output.getvalue()))
        (folder / f"rank{rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    run_commands(Path(sys.argv[1]))
