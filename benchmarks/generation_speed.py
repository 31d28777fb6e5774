"""Compare the codes per second of FAR with transformers' own sampler on a Llama of the same layers.

    python benchmarks/generation_speed.py [--batches 1 16] [--guidance-scales 1 2] [--repeats 3]

One codebook is compared with `LlamaForCausalLM.generate` with a static cache. Two codebooks, sampled position by
position with the factorized head, are compared with the same Llama over twice as many tokens of one codebook, which is
what two codebooks would take at least without that head. The weights are untrained, in fp32. With guidance, FAR
processes a picture with and without its class as two rows of one batch. transformers' own guidance makes a second
pass per token, whose cache is not static, so it samples twice as many pictures without guidance instead (and so draws
twice as many codes). The samplers are timed in turn, so that a drift of the machine's speed affects all equally.

The benchmark also prints the milliseconds per position at 10, 50 and 90 % of a picture (medians over a twentieth of the
positions on both sides), and compares FAR with a bound by memory bandwidth: the positions per second that would be
possible if a position of the whole batch cost no more than reading the weights of layers and head once.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch
import tyro
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from imtok.generators.far import FAR, FARConfig
from imtok.generators.sampling import SamplingConfig

SIDE, CODES = 16, 4096
POSITIONS = SIDE * SIDE
DIM, DEPTH, HEADS, HIDDEN = 384, 8, 6, 1024


def main(batches: tuple[int, ...] = (1, 16), guidance_scales: tuple[float, ...] = (1.0, 2.0), repeats: int = 3) -> None:
    """Time all samplers.

    Args:
        batches: numbers of pictures that are sampled together.
        guidance_scales: guidance scales; 1 is no guidance.
        repeats: timed batches, after one warm-up batch.
    """
    print(f"{DEPTH} layers of {DIM}, {POSITIONS} positions, fp32, {torch.get_num_threads()} threads, {repeats} repeats")
    models = [(codebooks, far(codebooks), llama(codebooks * POSITIONS)) for codebooks in (1, 2)]
    bytes_per_second = bandwidth()
    for scale, batch, (codebooks, model, theirs) in itertools.product(guidance_scales, batches, models):
        rows = batch if scale == 1 else 2 * batch
        sample_seconds(model, batch, scale)
        theirs(rows)
        runs, times = [], []
        for _ in range(repeats):
            runs.append(sample_seconds(model, batch, scale))
            started = time.perf_counter()
            theirs(rows)
            times.append(time.perf_counter() - started)
        ours, other = statistics.median(map(sum, runs)), statistics.median(times)
        pace = ", ".join(f"{1000 * pace_at(share, runs):.1f}" for share in (0.1, 0.5, 0.9))
        limit = bytes_per_second / bytes_per_position(model)
        codes = batch * codebooks * POSITIONS
        print(
            f"guidance {scale:g}, batch {batch}, {codebooks} codebook(s): FAR {codes / ours:.0f} codes/s, transformers "
            f"{codes / other:.0f}, ratio {other / ours:.2f}; ms per position at 10, 50, 90 %: {pace}; "
            f"{POSITIONS / ours:.0f} of at most {limit:.0f} positions/s",
            flush=True,
        )


def pace_at(share: float, runs: Sequence[Sequence[float]]) -> float:
    """Return the median seconds of a position near this share of a picture."""
    first, last = (int((share + around) * POSITIONS) for around in (-0.05, 0.05))
    return statistics.median(itertools.chain.from_iterable(run[first:last] for run in runs))


def bytes_per_position(model: FAR) -> int:
    """Return the size of the weights that every position reads; of the embeddings it reads a row only."""
    read = (*model.decoder.parameters(), *model.merge.parameters(), *model.head.parameters())
    return sum(parameter.numel() * parameter.element_size() for parameter in read)


def far(codebooks: int) -> FAR:
    """Return an untrained FAR, with a linear head for one codebook and a factorized head of one block for several."""
    torch.manual_seed(0)
    head = "linear" if codebooks == 1 else "factorized"
    config = FARConfig(
        codebook_sizes=(CODES,) * codebooks,
        token_shape=(SIDE, SIDE),
        num_classes=10,
        dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        head=head,
        head_depth=1,
    )
    return FAR(config).eval()


def sample_seconds(model: FAR, batch: int, guidance_scale: float) -> list[float]:
    """Sample pictures and return the seconds that each position took."""
    moments = [time.perf_counter()]
    settings = SamplingConfig(guidance_scale=(guidance_scale,))
    model.sample(["1"] * batch, list(range(batch)), settings, lambda share: moments.append(time.perf_counter()))
    return [after - before for before, after in itertools.pairwise(moments)]


def llama(tokens: int) -> Callable[[int], None]:
    """Return a call of transformers' sampler on an untrained Llama with as many layers of the same size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CODES + 1,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=tokens + 1,
        bos_token_id=CODES,
        eos_token_id=None,
        pad_token_id=CODES,
    )
    model = LlamaForCausalLM(config).eval()
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        cache_implementation="static",
        bos_token_id=CODES,
        pad_token_id=CODES,
    )

    @torch.no_grad()
    def sample(batch: int) -> None:
        start = torch.full((batch, 1), CODES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.generate(start, attention_mask=torch.ones_like(start), generation_config=settings)  # pyright: ignore

    return sample


def bandwidth() -> float:
    """Return the bytes per second that can be read from memory, the best of five trials."""
    numbers = torch.ones(1 << 27)
    trials = []
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        trials.append(time.perf_counter() - started)
    return numbers.numel() * numbers.element_size() / min(trials)


if __name__ == "__main__":
    tyro.cli(main)
