"""Labels and meanings of the metrics; only metrics computed with the published networks have the published names."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from imtok.config import ConfigError
from imtok.evaluation.dpg import KINDS
from imtok.evaluation.geneval import TASKS


@dataclass(frozen=True)
class MetricInfo:
    """A metric's label in reports, its meaning, and whether lower values are better."""

    label: str
    meaning: str
    lower_is_better: bool = False


METRIC_INFO = {
    "psnr": MetricInfo("PSNR", "dB, higher is better"),
    "ssim": MetricInfo("SSIM", "higher is better"),
    "vgg16_distance": MetricInfo("VGG16 distance", "unweighted, lower is better; not LPIPS", lower_is_better=True),
    "lpips": MetricInfo("LPIPS", "VGG16, version 0.1, lower is better", lower_is_better=True),
    "fd_efficientnet_lite0": MetricInfo(
        "Fréchet distance", "EfficientNet-Lite0, lower is better; not FID", lower_is_better=True
    ),
    "bits_per_pixel": MetricInfo("bits per pixel", "rate"),
    "bits_per_pixel_with_caption": MetricInfo(
        "bits per pixel with the caption", "rate of tokens and caption together, at most"
    ),
    "caption_bits": MetricInfo(
        "bits of the caption", "a picture, at most; reported beside the tokens, not in the rate"
    ),
    "codebook_usage": MetricInfo("codebook usage", "share of the codes"),
    "codebook_perplexity": MetricInfo("codebook perplexity", "codes"),
    "shared_information": MetricInfo("shared information", "bits that codebooks share at a position, beyond chance"),
    "text_accuracy": MetricInfo("text accuracy", "words still read, to the letter; not T-ACC, whose judge is PARSeq"),
    "text_ned": MetricInfo(
        "edit similarity", "of words, 1 - edit distance over length; not T-NED, whose judge is PARSeq"
    ),
    "text_accuracy_alnum": MetricInfo("text accuracy, letters and digits", "case and punctuation do not count"),
    "face_similarity": MetricInfo("face similarity", "cosine of embeddings"),
    "fid": MetricInfo("FID", "Inception-v3, lower is better", lower_is_better=True),
    "sfid": MetricInfo("sFID", "Inception-v3, places kept, lower is better", lower_is_better=True),
    "inception_score": MetricInfo("inception score", "higher is better"),
    "precision": MetricInfo("precision", "Inception-v3, share of the pictures among the reference"),
    "recall": MetricInfo("recall", "Inception-v3, share of the reference among the pictures"),
    "sfd_efficientnet_lite0": MetricInfo(
        "spatial Fréchet distance", "EfficientNet-Lite0, lower is better; not sFID", lower_is_better=True
    ),
    "class_score_efficientnet_lite0": MetricInfo(
        "class score", "EfficientNet-Lite0, higher is better; not the inception score"
    ),
    "precision_efficientnet_lite0": MetricInfo(
        "precision, EfficientNet-Lite0", "share of the pictures among the reference"
    ),
    "recall_efficientnet_lite0": MetricInfo("recall, EfficientNet-Lite0", "share of the reference among the pictures"),
    "clip_score": MetricInfo("CLIP score", "100 times the cosine of picture and prompt, negative ones as 0"),
    "rendered_text_ned": MetricInfo("rendered text, NED", "1 - edit distance over length, of all that is read"),
    "rendered_word_accuracy": MetricInfo("rendered words", "share of the words asked for that are read, to the letter"),
    "rendered_word_accuracy_alnum": MetricInfo(
        "rendered words, letters and digits", "case and punctuation do not count"
    ),
    "geneval": MetricInfo("GenEval", "mean of six tasks' shares of pictures that are right"),
    **{
        f"geneval_{task}": MetricInfo(f"GenEval, {task.replace('_', ' ')}", "share of pictures that are right")
        for task in TASKS
    },
    "dpg": MetricInfo(
        "DPG-Bench", "share of questions answered with yes, mean over prompts; papers print 100 times it"
    ),
    **{
        f"dpg_{kind}": MetricInfo(f"DPG-Bench, {kind}", "share of these questions that are answered with yes")
        for kind in KINDS
    },
    "magface": MetricInfo("MagFace", "length of a face's vector, higher is better"),
    "face_norm_mobilefacenet": MetricInfo("face norm, MobileFaceNet", "length of a face's vector; not MagFace"),
}
PUBLISHED = {
    ("text_accuracy", "text_judge/parseq"): MetricInfo("T-ACC", "words still read, to the letter"),
    ("text_ned", "text_judge/parseq"): MetricInfo("T-NED", "1 - edit distance over length"),
    ("face_similarity", "face_judge/antelopev2"): MetricInfo("F-Sim", "cosine of identities"),
}
"""Metrics that have the published name if they are computed with the published network, by metric and network."""


def family(metric: str) -> str:
    """Return a metric's name without the index of a codebook: `codebook_usage` for `codebook_usage_1`."""
    return metric if metric in METRIC_INFO else metric.rpartition("_")[0]


def metric_info(metric: str, network: str | None = None) -> MetricInfo:
    """Return the info of a metric computed with a network; the label for one of several codebooks has its index."""
    found = PUBLISHED.get((metric, network or ""), METRIC_INFO[family(metric)])
    if metric in METRIC_INFO:
        return found
    return MetricInfo(f"{found.label} {metric.rpartition('_')[2]}", found.meaning, found.lower_is_better)


def check_names(metrics: Sequence[str] | None, known: Collection[str]) -> None:
    """Check that all names are known metrics; None passes.

    Raises:
        ConfigError: a name is unknown.
    """
    if unknown := [name for name in metrics or () if name not in known]:
        raise ConfigError(f"no metric is called {unknown[0]!r}; there are {', '.join(known)}")
