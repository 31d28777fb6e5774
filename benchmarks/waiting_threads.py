"""Measure what spinning threads cost a training run on a CPU, alone and next to another busy process.

    python benchmarks/waiting_threads.py [--steps 5]

Each combination runs in a process of its own, twice in turn. The benchmark prints the median seconds of an
insighttok-nano step.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import tyro

STEP = """
import sys, time, torch
sys.path.insert(0, {folder!r})
from training_step import example_batch, optimizers_of, ready, train_step
from imtok import presets
from imtok.training.run import Phase
config = presets.get("insighttok-nano")
task = ready(config)
task.start_phase(Phase(name="plain", steps=1))
batch, task.players = example_batch(16, 128), ("tokenizer",)
optimizers = optimizers_of(task)
for _ in range({steps} + 1):
    started = time.perf_counter()
    train_step(task, optimizers, batch)
    print(time.perf_counter() - started, flush=True)
"""


def main(steps: int = 5) -> None:
    """Measure all four combinations.

    Args:
        steps: timed steps in each process, after one warm-up step.
    """
    seconds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(2):
        for busy in (False, True):
            for policy in ("ACTIVE", "PASSIVE"):
                with neighbour(busy):
                    seconds.setdefault((policy, busy), []).extend(run(policy, steps))
    for (policy, busy), values in seconds.items():
        print(f"{policy.lower():8} {'beside a busy process' if busy else 'alone':22} {statistics.median(values):.2f} s")


def run(policy: str, steps: int) -> list[float]:
    """Return the seconds of each step, measured in a new process."""
    code = STEP.format(folder=os.path.dirname(os.path.abspath(__file__)), steps=steps)
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [float(line) for line in result.stdout.split()][1:]


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """Run a process that keeps one core busy while the context is open, if `busy` is true."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


if __name__ == "__main__":
    tyro.cli(main)
