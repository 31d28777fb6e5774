"""Compare the lookup in k codebooks with one of as many codes and one of as many bits (FQGAN, section 3.2).

    python benchmarks/codebook_lookup.py [--codes 16384] [--dim 8] [--tokens 256]

The paper says that factorization "reduces the lookup complexity". One codebook of k times the codes takes as many dot
products as k codebooks, so the two should cost the same. One codebook that distinguishes as many patches (codes to the
power of k) takes orders of magnitude more. It is timed for k = 2 only, and once: one block of it is searched
repeatedly, which takes as long as the whole codebook, whose memory is reported. The others are timed in turn. `scores`
is the largest table of dot products that is in memory at once.
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
"""Number of codes of the largest codebook that are searched at once."""
MEGABYTE = 1e6


def main(codes: int = 16_384, dim: int = 8, tokens: int = 256, repeats: int = 5) -> None:
    """Time the lookup of one picture's tokens.

    Args:
        codes: codes of a sub-codebook.
        dim: channels of a code.
        tokens: vectors that are looked up in each codebook.
        repeats: timed repetitions, after one warm-up.
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
    """Print a line: time, its ratio to the time of the factorized lookup of the same k, and memory."""
    print(f"{name:>17} {1e3 * taken:9.2f} ms {ratio:10.2f} x {codes / MEGABYTE:9.1f} MB {scores / MEGABYTE:9.1f} MB")


def unit(codes: int, dim: int) -> torch.Tensor:
    """Return random unit vectors."""
    return F.normalize(torch.randn(codes, dim), dim=1)


def nearest_in_blocks(vectors: torch.Tensor, codebook: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the nearest codes in a codebook that is too large for the scores of all its codes at once."""
    best_scores, best_codes = torch.full((len(vectors),), -torch.inf), torch.zeros(len(vectors), dtype=torch.long)
    offset = 0
    for part in codebook:
        scores, codes = (vectors @ part.T).max(1)
        best_codes = torch.where(scores > best_scores, codes + offset, best_codes)
        best_scores = torch.maximum(best_scores, scores)
        offset += len(part)
    return best_codes


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
