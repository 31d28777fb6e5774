"""Evaluate any tokenizers on any sets of pictures: scores with intervals, paired differences and an HTML report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from imtok import pretrained
from imtok.config import ConfigError, InputError
from imtok.data.readers import open_dataset
from imtok.data.rows import as_unicode
from imtok.data.sample import Dataset
from imtok.evaluation.buckets import FaceBuckets
from imtok.evaluation.cache import EvaluationCache, default_file
from imtok.evaluation.evaluate_set import SetResult, evaluate_set
from imtok.evaluation.faces import FACE_JUDGE, FaceJudge, FaceMeter
from imtok.evaluation.failures import Failures
from imtok.evaluation.meters import Meter, PerceptualMeter
from imtok.evaluation.metric_names import check_names, family
from imtok.evaluation.preprocessing import CentreCrop, FitRule, Preprocessing, make_preprocessing
from imtok.evaluation.protocols import EvaluationProtocol, deviations, get_protocol
from imtok.evaluation.ranks import Ranks, say, together, unwrap
from imtok.evaluation.reconstructors import (
    Reconstructor,
    TokenizerReconstructor,
    check_name,
    open_reconstructor,
    self_checks,
)
from imtok.evaluation.report import write_report
from imtok.evaluation.reproduction import command_line, versions
from imtok.evaluation.results import REPORT, Evaluation, write_results
from imtok.evaluation.set_meters import FeatureMeter
from imtok.evaluation.sets import check_limits, name_sets
from imtok.evaluation.text import TEXT_JUDGE, TextJudge, TextMeter
from imtok.evaluation.wrong_captions import WrongCaptions
from imtok.layers.collective import best_device, rank

METRICS = (
    "psnr",
    "ssim",
    "vgg16_distance",
    "lpips",
    "fd_efficientnet_lite0",
    "class_score_efficientnet_lite0",
    "fid",
    "inception_score",
    "bits_per_pixel",
    "bits_per_pixel_with_caption",
    "caption_bits",
    "codebook_usage",
    "codebook_perplexity",
    "shared_information",
    "text_accuracy",
    "text_ned",
    "text_accuracy_alnum",
    "face_similarity",
)
_JUDGES = {"text": TextJudge, "face": FaceJudge}
_UNCROPPED_NOTE = (
    "fid and inception_score: pictures were not cropped here (--size 256 --fit crop does that), so these are the "
    "numbers of papers only if the pictures had been cropped before"
)
_EFFICIENTNET, _INCEPTION = ("fd_efficientnet_lite0", "class_score_efficientnet_lite0"), ("fid", "inception_score")
_ACCELERATED = ("perceptual", "lpips", "efficientnet", "inception")
"""Networks that run on the accelerator, on whole pictures; the judges of words and faces run on the CPU."""


def evaluate(
    tokenizers: str | PathLike[str] | Sequence[str | PathLike[str]],
    data: str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[str, Dataset],
    out: str | Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    size: int | None = None,
    fit: FitRule = "pad",
    count: int | None = None,
    checks: bool = True,
    wrong_captions: bool = False,
    text_judge: str = TEXT_JUDGE,
    face_judge: str = FACE_JUDGE,
    face_buckets: FaceBuckets = "second",
    cache: bool = True,
    protocol: str | None = None,
) -> Evaluation:
    """Measure tokenizers on sets of pictures.

    An unknown name raises an error before anything is measured. A tokenizer or set that exists but cannot be opened is
    skipped, and so is a tokenizer on a set on which it fails; everything else is measured, and `Evaluation.failed`
    lists what is missing and why.

    Processes started by torchrun share the work. All of them must call this function with the same arguments; each
    returns the complete result, and rank 0 writes the files. An error on any rank is raised on rank 0, and the other
    ranks exit.

    Args:
        tokenizers: shipped names, run folders, other projects' checkpoints, folders of reconstructed pictures
            (`FOLDER@BITS_PER_PIXEL` where their rate is known), or codecs (`jpeg:QUALITY`, `webp@BITS_PER_PIXEL`). All
            others are compared with the first.
        data: anything that `open_dataset` reads, or a mapping from names to datasets. Text metrics need words with
            their text, and face metrics need faces with landmarks, as written by `imtok annotate`.
        out: output folder for `metrics.json`, `report.html` and `items.jsonl`; None writes nothing.
        metrics: names from `METRICS`; None: those of the protocol, or all that the pictures and the available networks
            allow.
        size: side in pixels of the square at which pictures are evaluated; None: every picture at its own size.
        fit: how a picture becomes a square of that size: padded as in TokBench (`PadToSquare`), or cropped as for rFID
            on ImageNet (`CentreCrop`).
        count: maximum number of pictures of each set, evenly spread over it.
        checks: whether to also measure the model-free self-checks.
        wrong_captions: whether to also measure every tokenizer that is conditioned on captions with the captions of
            other pictures.
        text_judge: registry name of the network that reads the words.
        face_judge: registry name of the network that compares the faces.
        face_buckets: which version of TokBench's face size buckets to use.
        cache: whether to store the networks' outputs for originals on disk and reuse them (see
            `imtok.evaluation.cache`).
        protocol: name from `PROTOCOLS` of a protocol for reconstructions; deviations from it are reported.

    Returns:
        The scores, comparisons, examples and failures.

    Raises:
        ConfigError: an unknown metric, tokenizer, judge or protocol, two tokenizers of the same name, or no tokenizer
            or metric is left to measure.
        DataError: a set does not exist, or no set is left to measure.
        MissingWeights: the networks of all explicitly requested metrics are missing.
    """
    options = {
        "metrics": metrics,
        "size": size,
        "fit": fit,
        "count": count,
        "checks": checks,
        "wrong_captions": wrong_captions,
        "text_judge": text_judge,
        "face_judge": face_judge,
        "face_buckets": face_buckets,
        "protocol": protocol,
    }
    with together() as ranks:
        sources = [tokenizers] if isinstance(tokenizers, str | PathLike) else list(tokenizers)
        places = [data] if isinstance(data, str | PathLike) else data
        failures = Failures()
        published = None if protocol is None else _reconstruction_protocol(protocol)
        if metrics is None and published is not None:
            metrics = published.metrics
        check_names(metrics, METRICS)
        if not sources or not places or (metrics is not None and not metrics):
            raise ConfigError("name at least one tokenizer, one set of pictures and one metric")
        check_limits(size, count)
        preprocessing = make_preprocessing(size, fit)
        for source in sources:
            check_name(str(source))
        in_memory = isinstance(places, Mapping)
        sets = places if isinstance(places, Mapping) else _open_sets(places, failures, ranks)
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
        reconstructors = _open_reconstructors(sources, () if in_memory else tuple(places), failures, ranks)
        if wrong_captions:
            reconstructors += _with_wrong_captions(reconstructors)
        if checks:
            reconstructors += self_checks()
        networks, unavailable = load_networks(metrics, text_judge, face_judge, ranks)
        wanted = None
        if metrics is not None:
            wanted = [
                metric
                for metric, _ in failures.survivors("metric", [(name, unavailable.get(name)) for name in metrics])
            ]
        else:
            for metric, error in unavailable.items():
                failures.add(error, metric=metric)
        # Sets in memory cannot be named on a command line.
        arguments = None if in_memory else ["evaluate", *map(str, sources), "--data", *map(str, places)]
        record = _Record(
            reconstructors=reconstructors,
            fit=preprocessing,
            preprocessing=preprocessing.rule if size is None else f"{preprocessing.rule}, {size} px",
            notes=[
                *([_UNCROPPED_NOTE] if "inception" in networks and not isinstance(preprocessing, CentreCrop) else []),
                *([] if published is None else published.unchecked),
            ],
            protocol=protocol,
            reproduction={} if arguments is None else {"command": command_line(evaluate, arguments, options)},
            failures=failures,
            out=None if out is None or rank() != 0 else Path(out),
        )
        with EvaluationCache(default_file() if cache else None) as evaluation_cache:
            meters = partial(_meters, networks, face_buckets, evaluation_cache)

            def measure(name: str, source: Dataset) -> SetResult:
                return evaluate_set(name, source, reconstructors, wanted, meters, preprocessing, count, failures, ranks)

            for part in _measure_sets(sets, measure, failures):
                record.add(part)
                if isinstance(part.ended_by, KeyboardInterrupt):
                    raise part.ended_by
        return record.finish(wanted or ())


@dataclass(kw_only=True)
class _Record:
    """The results of an evaluation so far.

    Attributes:
        notes: notes that every reader of the results must see.
        out: output folder; None on all ranks except rank 0.
    """

    reconstructors: list[Reconstructor]
    fit: Preprocessing
    preprocessing: str
    notes: list[str]
    protocol: str | None
    reproduction: dict[str, Any]
    failures: Failures
    out: Path | None
    parts: list[SetResult] = field(default_factory=list)

    def add(self, part: SetResult) -> None:
        """Add the results of a set and write all results so far, so that nothing is lost if a later set fails."""
        self.parts.append(part)
        self._write(self._evaluation())

    def finish(self, wanted: Sequence[str]) -> Evaluation:
        """Write and return all results, with the report; metrics that no set measured become failures."""
        measured = {family(metric) for part in self.parts for r in part.results for metric in r.metrics}
        for metric in wanted:
            if metric not in measured:
                self.failures.add("nothing to measure it on", metric=metric)
        evaluation = self._evaluation()
        self._write(evaluation)
        if self.out is not None:
            write_report(evaluation, self.out / REPORT)
        return evaluation

    def _evaluation(self) -> Evaluation:
        published = None if self.protocol is None else get_protocol(self.protocol)
        differing = {} if published is None else {p.data.name: _deviations(published, p, self.fit) for p in self.parts}
        return Evaluation(
            tokenizers={reconstructor.name: _tokenizer_info(reconstructor) for reconstructor in self.reconstructors},
            sets=[part.data for part in self.parts],
            results=[result for part in self.parts for result in part.results],
            comparisons=[comparison for part in self.parts for comparison in part.comparisons],
            preprocessing=self.preprocessing,
            examples=[example for part in self.parts for example in part.examples],
            reproduction=self.reproduction | {"versions": versions()},
            cases=[case for part in self.parts for case in part.cases],
            protocol=self.protocol,
            deviations=differing,
            notes=self.notes,
            failed=self.failures.met,
        )

    def _write(self, evaluation: Evaluation) -> None:
        if self.out is not None:
            write_results(evaluation.to_json(), (item for part in self.parts for item in part.items), self.out)


def _open_reconstructors(
    sources: Sequence[str | PathLike[str]], data: Sequence[str | PathLike[str]], failures: Failures, ranks: Ranks
) -> list[Reconstructor]:
    """Open the reconstructors; those that cannot be opened are recorded as failures."""
    opened = [(str(source), ranks.agree(partial(open_reconstructor, data=data), str(source))) for source in sources]
    return _with_unique_names(failures.survivors("tokenizer", opened))


def _with_wrong_captions(reconstructors: Sequence[Reconstructor]) -> list[Reconstructor]:
    """Return a control with wrong captions for every tokenizer that is conditioned on captions."""
    controls = [
        WrongCaptions(reconstructor)
        for reconstructor in reconstructors
        if isinstance(reconstructor, TokenizerReconstructor) and reconstructor.text_conditioner
    ]
    if not controls:
        say("wrong captions: none of the tokenizers is conditioned on captions")
    return [*controls]


def _with_unique_names(opened: Sequence[tuple[str, Reconstructor]]) -> list[Reconstructor]:
    """Return the reconstructors with unique names; one whose name is not unique is named by its source instead.

    Raises:
        ConfigError: these names are not unique either, or clash with another name in the report.
    """
    names = ["original", *(check.name for check in self_checks()), *(reconstructor.name for _, reconstructor in opened)]
    for source, reconstructor in opened:
        reconstructor.name = as_unicode(reconstructor.name if names.count(reconstructor.name) == 1 else source)
    names[-len(opened) :] = [reconstructor.name for _, reconstructor in opened]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tokenizers are called {max(names, key=names.count)}; rename a folder")
    return [reconstructor for _, reconstructor in opened]


def _open_sets(places: Sequence[str | PathLike[str]], failures: Failures, ranks: Ranks) -> dict[str, Dataset]:
    opened = [(name, ranks.agree(open_dataset, place)) for name, place in name_sets(places).items()]
    return dict(failures.survivors("data", opened))


def _measure_sets(
    sets: Mapping[str, Dataset], measure: Callable[[str, Dataset], SetResult], failures: Failures
) -> Iterator[SetResult]:
    """Yield the result of each set, skipping those that fail; if all fail, raise the last one's error."""
    left = len(sets)
    for number, (name, source) in enumerate(sets.items(), 1):
        try:
            part = measure(name, source)
        except (InputError, OSError) as error:
            left -= 1
            if not left and number == len(sets):
                raise
            failures.add(error, data=name)
        else:
            yield part


def _reconstruction_protocol(protocol: str) -> EvaluationProtocol:
    found = get_protocol(protocol)
    if not set(found.metrics) <= set(METRICS):
        raise ConfigError(f"the protocol {protocol} is of generated pictures: imtok evaluate-generated")
    return found


def _deviations(protocol: EvaluationProtocol, part: SetResult, fit: Preprocessing) -> list[str]:
    """Return the deviations from a protocol on a set; the reference set is the originals themselves."""
    uncropped = "pictures are not cropped to centred squares of one size (--size 256 --fit crop)"
    return [
        *([] if isinstance(fit, CentreCrop) else [uncropped]),
        *deviations(
            protocol,
            metrics={metric: score.network for result in part.results for metric, score in result.metrics.items()},
            pictures=part.data.pictures,
            sizes=part.sizes,
            reference_pictures=protocol.reference_pictures,
            prompts=0,
            texts=(),
        ),
    ]


def _tokenizer_info(reconstructor: Reconstructor) -> dict[str, Any]:
    info: dict[str, Any] = {"teachers": sorted(reconstructor.teachers), "is_check": reconstructor.is_check}
    return info if reconstructor.sha256 is None else info | {"sha256": reconstructor.sha256}


def load_networks(
    metrics: Sequence[str] | None, text_judge: str, face_judge: str, ranks: Ranks
) -> tuple[dict[str, Any], dict[str, InputError | OSError]]:
    """Load the networks of some metrics.

    A network that is missing or broken on one rank counts as such on all ranks.

    Returns:
        The networks by purpose, and the error of each metric that was expected but cannot be measured: a metric that
        was requested by name, one of a judge that is not the default, or one whose network is installed but broken.

    Raises:
        InputError: a judge is unknown or of the wrong kind.
    """
    needed = {
        "perceptual": ("perceptual/vgg16", {"vgg16_distance"}),
        "lpips": ("perceptual/lpips_vgg", {"lpips"}),
        "efficientnet": ("vision/efficientnet_lite0", {*_EFFICIENTNET}),
        "inception": ("vision/inception", {*_INCEPTION}),
        "text": (text_judge, {"text_accuracy", "text_ned", "text_accuracy_alnum"}),
        "face": (face_judge, {"face_similarity"}),
    }
    networks: dict[str, Any] = {}
    unavailable: dict[str, InputError | OSError] = {}
    named = {
        purpose
        for purpose, judge, default in (("text", text_judge, TEXT_JUDGE), ("face", face_judge, FACE_JUDGE))
        if judge != default
    }
    for purpose, (registry_name, served_metrics) in needed.items():
        if metrics is not None and not served_metrics & set(metrics):
            continue
        network = ranks.agree(pretrained.load, registry_name)
        if purpose in _JUDGES and registry_name not in pretrained.REGISTRY:
            unwrap(network)  # raises: the registry has no network of this name
        if not isinstance(network, InputError | OSError):
            networks[purpose] = network.to(best_device()) if purpose in _ACCELERATED else network
            if not isinstance(network, _JUDGES.get(purpose, object)):
                raise ConfigError(
                    f"{registry_name}: cannot judge {purpose}s; see imtok weights for the {purpose} judges"
                )
        elif metrics is not None or purpose in named or not isinstance(network, pretrained.MissingWeights):
            unavailable |= dict.fromkeys(served_metrics, network)
        elif purpose not in ("lpips", "inception"):  # rarely installed, and substitutes for them are measured
            say(f"without {', '.join(sorted(served_metrics))}: {network}")
    return networks, unavailable


def _meters(
    networks: Mapping[str, Any], face_buckets: FaceBuckets, cache: EvaluationCache, total: int
) -> list[Meter[Any]]:
    """Create new meters for a set of `total` pictures."""
    makers: dict[str, Callable[[Any], Meter[Any]]] = {
        "perceptual": PerceptualMeter,
        "lpips": lambda network: PerceptualMeter(network, "lpips"),
        "efficientnet": lambda network: FeatureMeter(network, _EFFICIENTNET, total, cache),
        "inception": lambda network: FeatureMeter(network, _INCEPTION, total, cache),
        "text": lambda judge: TextMeter(judge, cache),
        "face": lambda judge: FaceMeter(judge, face_buckets, cache),
    }
    return [makers[purpose](network) for purpose, network in networks.items()]
