"""Published protocols by name: what is measured, on how many pictures, against which reference."""

from collections.abc import Collection, Mapping
from dataclasses import field

from imtok.config import ConfigError, config
from imtok.evaluation.benchmark_meters import DPG, GENEVAL


@config
class EvaluationProtocol:
    """What a published number was measured on. Whatever is None is free."""

    source: str
    """Paper and section."""
    metrics: tuple[str, ...]
    """As `imtok evaluate` and `imtok evaluate-generated` call them."""
    networks: dict[str, str] = field(default_factory=dict)
    """Metrics that keep their name whoever reads, and who does in the paper."""
    pictures: int
    """How many are looked at."""
    sizes: tuple[int, ...] = ()
    """Of the pictures' sides, in pixels: one of these."""
    others: tuple[str, ...] = ()
    """What differs here whatever is measured, or cannot be checked; a line each."""
    reference: str | None = None
    """In words; the files are the user's own."""
    reference_pictures: int | None = None
    """How many of them."""
    statistics: tuple[str, ...] = ()
    """That the reference must bring along."""
    prompts: int | None = None
    """Different ones."""
    pictures_per_prompt: int | None = None
    """Of each of them."""
    text_length: tuple[int, int] | None = None
    """Fewest and most characters of a text that shall be seen."""

    @property
    def unchecked(self) -> list[str]:
        """What nobody can tell from the files: a line for whoever reads the numbers."""
        if self.reference is None:
            return []
        return [f"{self.source}: the reference is to be {self.reference}; whether it is, nothing here can check"]


_SET_METRICS = ("fid", "sfid", "inception_score", "precision", "recall")

PROTOCOLS: dict[str, EvaluationProtocol] = {
    "imagenet-val-reconstruction": EvaluationProtocol(
        source="rFID and PSNR of InsightTok (Table 1, at 512 px) and FQGAN (section 4.1, at 256; inception score too)",
        metrics=("fid", "inception_score", "psnr"),
        pictures=50_000,
        sizes=(256, 512),
        reference="ImageNet-1K's validation pictures, resized and cropped like the reconstructions; not ADM's .npz",
        reference_pictures=50_000,
    ),
    "imagenet-train-reconstruction": EvaluationProtocol(
        source="rFID, rIS, PSNR, SSIM and LPIPS of TexTok (section 4.2)",
        metrics=("fid", "inception_score", "psnr", "ssim", "lpips"),
        pictures=50_000,
        sizes=(256, 512),
        reference="the 50,000 training pictures of ImageNet-1K that were reconstructed; which ones is not stated",
        reference_pictures=50_000,
    ),
    "imagenet-generation": EvaluationProtocol(
        source="ADM's suite, as in TexTok (section 4.2) and FQGAN (section 4.1)",
        metrics=_SET_METRICS,
        pictures=50_000,
        sizes=(256, 512),
        reference="ADM's VIRTUAL_imagenet256_labeled.npz (or 512): statistics of the training set and 10,000 pictures",
        reference_pictures=10_000,
        statistics=("frechet", "spatial"),
    ),
    "imagenet-captions": EvaluationProtocol(
        source="text-to-image of TexTok (section 4.2)",
        others=("which CLIP the paper's score is of is not stated",),
        metrics=("fid", "clip_score"),
        pictures=50_000,
        sizes=(256,),
        reference="ImageNet-1K's validation pictures",
        reference_pictures=50_000,
    ),
    "crowds": EvaluationProtocol(
        source="MagFace of InsightTok (appendix F.2.1)",
        others=(
            "faces are found by MTCNN, of 20 pixels or more and with a score above .95, so the most distorted ones may "
            "be missing; the paper's detector is named by ArcFace's article alone",
        ),
        metrics=("magface",),
        pictures=300,
        prompts=15,
        pictures_per_prompt=20,
    ),
    "geneval": EvaluationProtocol(
        source="GenEval (Ghosh et al. 2023), as in InsightTok (Table 2)",
        others=("whether the networks are the benchmark's (Mask2Former with Swin-S, CLIP ViT-L/14) is not checked",),
        metrics=GENEVAL,
        pictures=4 * 553,
        prompts=553,
        pictures_per_prompt=4,
    ),
    "dpg": EvaluationProtocol(
        source="DPG-Bench (Hu et al. 2024), as in InsightTok (Table 2)",
        others=("questions are not answered by the benchmark's network, mPLUG-large",),
        metrics=DPG,
        pictures=4 * 1065,
        prompts=1065,
        pictures_per_prompt=4,
    ),
    "quotes": EvaluationProtocol(
        source="NED of InsightTok (appendix F.2.2)",
        others=("lines are found by PP-OCRv6's detector, not by docTR's",),
        metrics=("rendered_text_ned",),
        networks={"rendered_text_ned": "text_judge/parseq"},  # docTR's; which of its recognizers is not stated
        pictures=200,
        prompts=200,
        text_length=(100, 300),
    ),
}


def get_protocol(name: str) -> EvaluationProtocol:
    """One by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def deviations(
    protocol: EvaluationProtocol,
    *,
    metrics: Mapping[str, str | None],
    pictures: int,
    sizes: Collection[tuple[int, int]],
    reference_pictures: int | None,
    prompts: int,
    texts: tuple[str, ...],
    pictures_of_prompts: tuple[int, ...] = (),
    statistics: Collection[str] = (),
) -> list[str]:
    """What differs from a protocol, so that the numbers are not those that it means; a line each.

    Args:
        protocol: it.
        metrics: what was measured, and through which network.
        pictures: how many were.
        sizes: their widths and heights.
        reference_pictures: of the reference; None without one.
        prompts: different ones (or texts) that the pictures were asked for.
        texts: that should be seen.
        pictures_of_prompts: how many there are of each different prompt.
        statistics: that the reference brings along.
    """
    found = [*protocol.others]
    found += [f"{metric} was not measured" for metric in protocol.metrics if metric not in metrics]
    found += [
        f"{metric} was measured through {metrics[metric]}, {wanted} is wanted"
        for metric, wanted in protocol.networks.items()
        if metric in metrics and wanted not in (metrics[metric] or "").split(" + ")
    ]
    pairs = [
        ("pictures", pictures, protocol.pictures),
        ("pictures of the reference", reference_pictures or 0, protocol.reference_pictures),
        ("different prompts", prompts, protocol.prompts),
    ]
    found += [f"{have} {what}, {want} are wanted" for what, have, want in pairs if want is not None and have != want]
    if protocol.sizes and not set(sizes) <= {(side, side) for side in protocol.sizes}:
        (width, height), *others = sorted(sizes)
        wanted_sizes = " or ".join(f"{side} x {side}" for side in protocol.sizes)
        found.append(
            f"pictures of {width} x {height} pixels{' and others' if others else ''}, {wanted_sizes} are wanted"
        )
    if not set(protocol.statistics) <= set(statistics):
        found.append("the reference lacks the statistics of the whole set (mu, sigma, mu_s, sigma_s)")
    wanted = protocol.pictures_per_prompt
    if wanted is not None and (uneven := sum(count != wanted for count in pictures_of_prompts)):
        found.append(f"{uneven} prompts have more or fewer than {wanted} pictures")
    if protocol.text_length is not None:
        least, most = protocol.text_length
        if outside := sum(not least <= len(text) <= most for text in texts):
            found.append(f"{outside} texts have fewer than {least} or more than {most} characters")
    return found
