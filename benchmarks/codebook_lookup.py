"""What looking up k codebooks costs against one of as many codes, and one of as many bits (FQGAN, section 3.2).

    python benchmarks/codebook_lookup.py [--codes 16384] [--dim 8] [--tokens 256]

The paper says that factorization "reduces the lookup complexity". Against one codebook of k times the codes there are
as many products, so the two should cost alike; against one of as many bits (codes to the power of k) there are orders
of magnitude between them. That one's scores do not fit into memory, so it is searched in blocks. All are timed in
turn; prints medians, ratios, and the memory of the codebooks.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import tyro

from imtok.tokenizers.quantization import nearest_codes

BLOCK = 1 << 18
"""Codes of the largest codebook that are searched at once."""


def main(codes: int = 16_384, dim: int = 8, tokens: int = 256, repeats: int = 5) -> None:
    """Time the lookups of one picture's tokens.

    Args:
        codes: in a sub-codebook.
        dim: of a code.
        tokens: vectors that are looked up in each codebook.
        repeats: counted ones, after one that is not; the largest codebook is searched once.
    """
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(tokens, dim), dim=1)
    books = {f"{k} x {codes:,}": [unit(codes, dim) for _ in range(k)] for k in (1, 2, 3)}
    books |= {f"1 x {k * codes:,}": [unit(k * codes, dim)] for k in (2, 3)}
    seconds: dict[str, list[float]] = {name: [] for name in books}
    for count in range(repeats + 1):
        for name, parts in books.items():
            taken = timed(lambda parts=parts: [nearest_codes(vectors, part, normalized=True) for part in parts])
            if count:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{tokens} tokens, codes of {dim} channels in fp32, {torch.get_num_threads()} threads, {repeats} repeats")
    pair = medians[f"2 x {codes:,}"]
    for name, parts in books.items():
        size = sum(part.nbytes for part in parts)
        print(f"{name:>16}  {1e3 * medians[name]:10.2f} ms  {medians[name] / pair:8.2f} x  {size / 1e6:10.1f} MB")
    huge = codes**2
    book, directions = torch.empty(huge, dim), unit(BLOCK, dim)
    for block in book.split(BLOCK):
        block.copy_(directions[: len(block)])
    taken = timed(lambda: nearest_in_blocks(vectors, book))
    print(f"{f'1 x {huge:,}':>16}  {1e3 * taken:10.0f} ms  {taken / pair:8.0f} x  {book.nbytes / 1e6:10.1f} MB")


def unit(codes: int, dim: int) -> torch.Tensor:
    """A codebook of random directions."""
    return F.normalize(torch.randn(codes, dim), dim=1)


def nearest_in_blocks(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The nearest of more codes than scores can be held for."""
    best, found = torch.full((len(vectors),), -torch.inf), torch.zeros(len(vectors), dtype=torch.long)
    for index, block in enumerate(codebook.split(BLOCK)):
        score, code = (vectors @ block.T).max(1)
        found = torch.where(score > best, code + index * BLOCK, found)
        best = torch.maximum(best, score)
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
