"""Compare the codes per second of FAR with transformers' own sampler on a Llama of the same layers.

    python benchmarks/generation_speed.py [--batches 1 16] [--guidance-scale 1.0]

One codebook is compared with `LlamaForCausalLM.generate` with a static cache. Two codebooks, sampled position by
position with the factorized head, are compared with the same Llama over twice as many tokens, which is what two
codebooks would take without that head. The weights are untrained, in fp32. The samplers are timed in turn, so that a
drift of the machine's speed affects all equally. The benchmark also prints the milliseconds per position at 10, 50 and
90 % of a picture, and the number of positions per second that would be possible if a position cost no more than reading
all weights once from memory.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import itertools
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import tyro
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from imtok.generators.far import FAR, FARConfig
from imtok.generators.sampling import SamplingConfig

SIDE, CODES = 16, 4096
DIM, DEPTH, HEADS, HIDDEN = 384, 8, 6, 1024


def main(batches: tuple[int, ...] = (1, 16), guidance_scale: float = 1.0, repeats: int = 3) -> None:
    """Time all samplers.

    Args:
        batches: numbers of pictures that are sampled together.
        guidance_scale: guidance scale of both samplers; 1 is no guidance.
        repeats: timed batches, after one warm-up batch.
    """
    places = SIDE * SIDE
    single, double = far(1), far(2)
    samplers: dict[str, tuple[Callable[[int], list[float]], int]] = {
        "FAR, 1 codebook": (lambda batch: sample_seconds(single, batch, guidance_scale), places),
        "Llama, 1 codebook": (llama(CODES, places, guidance_scale), places),
        "FAR, 2 codebooks": (lambda batch: sample_seconds(double, batch, guidance_scale), 2 * places),
        "Llama, 2 codebooks in a row": (llama(2 * CODES, 2 * places, guidance_scale), 2 * places),
    }
    per_position = (*single.decoder.parameters(), *single.head.parameters())  # of the embeddings only one row is read
    weights = sum(p.numel() * p.element_size() for p in per_position)
    print(f"{DEPTH} layers of {DIM}, {places} places, fp32, {torch.get_num_threads()} threads, {repeats} repeats")
    limit = bandwidth() / weights
    print(f"reading the {weights / 1e6:.0f} MB of layers and head once a place: {limit:.0f} places/s at most")
    for batch in batches:
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        moments: dict[str, list[float]] = {}
        for count in range(repeats + 1):
            for name, (sample, _) in samplers.items():
                started = time.perf_counter()
                moments[name] = sample(batch)
                if count:
                    seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, (_, codes) in samplers.items():
            pace = [f"{moments[name][int(share * places)] * 1000:.1f}" for share in (0.1, 0.5, 0.9) if moments[name]]
            along = f"; ms a place at 10, 50, 90 %: {', '.join(pace)}" if pace else ""
            print(f"batch {batch:2}, {name:28} {batch * codes / medians[name]:8.0f} codes/s{along}")
        for kind in ("1 codebook", "2 codebooks"):
            far_name, llama_name = (
                next(n for n in samplers if n.startswith(f"{who}, {kind}")) for who in ("FAR", "Llama")
            )
            print(f"batch {batch:2}, {kind}: {medians[llama_name] / medians[far_name]:.2f} times as fast")


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


def llama(codes: int, tokens: int, guidance_scale: float) -> Callable[[int], list[float]]:
    """Return a call of transformers' sampler on an untrained Llama with as many layers of the same size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=codes + 1,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=tokens + 1,
        bos_token_id=codes,
        eos_token_id=None,
        pad_token_id=codes,
    )
    model = LlamaForCausalLM(config).eval()
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        guidance_scale=None if guidance_scale == 1 else guidance_scale,
        cache_implementation="static",
        bos_token_id=codes,
        pad_token_id=codes,
    )

    @torch.no_grad()
    def sample(batch: int) -> list[float]:
        start = torch.full((batch, 1), codes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.generate(start, attention_mask=torch.ones_like(start), generation_config=settings)  # pyright: ignore
        return []

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
