"""What looking up k codebooks costs against one of as many codes, and one of as many bits (FQGAN, section 3.2).

    python benchmarks/codebook_lookup.py [--codes 16384] [--dim 8] [--tokens 256]

The paper says that factorization "reduces the lookup complexity". One codebook of k times the codes takes as many
products as k codebooks, so the two should cost alike; one that tells as many patches apart (codes to the power of k)
takes orders of magnitude more. Of that one, only k = 2 is timed, once: one block of it again and again, which takes
as long; the memory that is stated is the whole codebook's. The others are timed in turn. `scores` is the largest table
of products that is held at once.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
import tyro

from imtok.tokenizers.quantization import nearest_codes

BLOCK = 1 << 14
"""Codes of the largest codebook that are searched at once."""
MEGABYTE = 1e6


def main(codes: int = 16_384, dim: int = 8, tokens: int = 256, repeats: int = 5) -> None:
    """Time the lookups of one picture's tokens.

    Args:
        codes: in a sub-codebook.
        dim: of a code.
        tokens: vectors that are looked up in each codebook.
        repeats: counted ones, after one that is not.
    """
    torch.manual_seed(0)
    vectors = unit(tokens, dim)
    small = unit(1000, dim)
    assert torch.equal(nearest_in_blocks(vectors, small.split(300)), nearest_codes(vectors, small, normalized=True))
    books = {(k, codes): [unit(codes, dim) for _ in range(k)] for k in (1, 2, 3)}
    books |= {(1, k * codes): [unit(k * codes, dim)] for k in (2, 3)}
    seconds: dict[tuple[int, int], list[float]] = {name: [] for name in books}
    for count in range(repeats + 1):
        for name, parts in books.items():
            taken = timed(lambda parts=parts: [nearest_codes(vectors, part, normalized=True) for part in parts])
            if count:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{tokens} tokens, codes of {dim} channels in fp32, {torch.get_num_threads()} threads, {repeats} repeats")
    print(f"{'codebooks':>17} {'time':>12} {'against k':>12} {'codes':>12} {'scores':>12}")
    for (k, size), median in medians.items():
        split = medians[max(1, size // codes), codes] if k == 1 else median
        show(f"{k} x {size:,}", median, median / split, 4 * k * size * dim, 4 * tokens * size)
    huge = codes**2
    blocks = itertools.repeat(unit(BLOCK, dim), huge // BLOCK)
    taken = timed(lambda: nearest_in_blocks(vectors, blocks))
    show(f"1 x {huge:,}", taken, taken / medians[2, codes], 4 * huge * dim, 4 * tokens * BLOCK)


def show(name: str, taken: float, ratio: float, codes: float, scores: float) -> None:
    """A line: time, its ratio to that of the factorized lookup of the same k, and memory."""
    print(f"{name:>17} {1e3 * taken:9.2f} ms {ratio:10.2f} x {codes / MEGABYTE:9.1f} MB {scores / MEGABYTE:9.1f} MB")


def unit(codes: int, dim: int) -> torch.Tensor:
    """Random directions."""
    return F.normalize(torch.randn(codes, dim), dim=1)


def nearest_in_blocks(vectors: torch.Tensor, codebook: Iterable[torch.Tensor]) -> torch.Tensor:
    """The nearest of more codes than scores can be held for."""
    best, found = torch.full((len(vectors),), -torch.inf), torch.zeros(len(vectors), dtype=torch.long)
    passed = 0
    for part in codebook:
        score, code = (vectors @ part.T).max(1)
        found = torch.where(score > best, code + passed, found)
        best = torch.maximum(best, score)
        passed += len(part)
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
