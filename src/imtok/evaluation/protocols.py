"""Published evaluation protocols by name: metrics, number of pictures, and reference."""

from collections.abc import Collection, Mapping
from dataclasses import field

from imtok.config import ConfigError, config
from imtok.evaluation.benchmark_meters import DPG, GENEVAL


@config
class EvaluationProtocol:
    """The conditions under which published scores were measured; a field that is None imposes no condition."""

    source: str
    """Paper and section."""
    metrics: tuple[str, ...]
    """Names of the metrics in `imtok evaluate` and `imtok evaluate-generated`."""
    networks: dict[str, str] = field(default_factory=dict)
    """The paper's network for each metric whose name does not depend on its network."""
    pictures: int
    """Number of evaluated pictures."""
    sizes: tuple[int, ...] = ()
    """Allowed sides of the pictures, which are square, in pixels; empty: any size."""
    others: tuple[str, ...] = ()
    """Deviations that always apply, and conditions that cannot be checked; one line each."""
    reference: str | None = None
    """Description of the reference; the user supplies the files."""
    reference_pictures: int | None = None
    """Number of pictures in the reference."""
    statistics: tuple[str, ...] = ()
    """Kinds of precomputed statistics that the reference must provide."""
    prompts: int | None = None
    """Number of different prompts."""
    pictures_per_prompt: int | None = None
    """Number of pictures for each prompt."""
    text_length: tuple[int, int] | None = None
    """Minimum and maximum number of characters of the expected texts."""

    @property
    def unchecked(self) -> list[str]:
        """Conditions that cannot be checked from the files; one line each, for the report."""
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
        reference="ADM's VIRTUAL_imagenet256_labeled.npz or VIRTUAL_imagenet512.npz: statistics of the training set "
        "and 10,000 pictures",
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
        networks={
            "rendered_text_ned": "text_judge/parseq"
        },  # the paper uses docTR; which of its recognizers is not stated
        pictures=200,
        prompts=200,
        text_length=(100, 300),
    ),
}


def get_protocol(name: str) -> EvaluationProtocol:
    """Return a protocol by name.

    Raises:
        ConfigError: no protocol has this name.
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
    """Return the deviations of an evaluation from a protocol, one line each; with any, scores are not comparable.

    Args:
        protocol: the protocol.
        metrics: measured metrics, and the network behind each.
        pictures: number of evaluated pictures.
        sizes: widths and heights of the pictures.
        reference_pictures: number of pictures in the reference; None without a reference.
        prompts: number of different prompts (or texts) of the pictures.
        texts: texts that the pictures should show.
        pictures_of_prompts: number of pictures for each different prompt.
        statistics: kinds of precomputed statistics that the reference provides.
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
