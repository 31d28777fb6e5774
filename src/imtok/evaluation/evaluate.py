"""Any tokenizers on any pictures: numbers with intervals, differences between tokenizers, and a report to look at."""

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
from imtok.evaluation.set_meters import FrechetMeter, InceptionMeter
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
_UNCROPPED = (
    "fid and inception_score: pictures were not cropped here (--size 256 --fit crop does that), so these are the "
    "numbers of papers only if the pictures had been cropped before"
)
_ON_DEVICE = ("perceptual", "lpips", "frechet", "inception")
"""Networks that look at whole pictures; the judges of words and faces read on the CPU."""


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

    A name that nothing has ends all at once. What is there and cannot be opened is left out, and so is a tokenizer on a
    set on which it fails; the rest is measured, and `failed` says what is missing and why.

    Processes that torchrun has started, which must all call this alike, share the work: each returns all of it, and the
    first one writes the files. An error of one is raised by the first, and the others exit.

    Args:
        tokenizers: shipped names, run folders, other projects' checkpoints, folders of reconstructed pictures
            (`FOLDER@BITS_PER_PIXEL` where their rate is known), or codecs (`jpeg:QUALITY`, `webp@BITS_PER_PIXEL`). The
            others are compared with the first.
        data: anything that `open_dataset` reads, or sources by name. For the metrics that look at them, words need their
            text and faces their landmarks, as `imtok annotate` writes them.
        out: folder for `metrics.json`, `report.html` and `items.jsonl`; None writes nothing.
        metrics: names out of `METRICS`; None: those of the protocol, or all that the pictures and the networks at hand
            allow.
        size: judge at so many pixels; None: every picture at its own size.
        fit: how a picture becomes a square of that size: padded as TokBench does (`PadToSquare`), or cropped as for
            rFID on ImageNet (`CentreCrop`).
        count: at most so many pictures of each set, evenly spread.
        checks: also measure the model-free self-checks.
        wrong_captions: also measure every tokenizer that hears of captions while it is told another picture's.
        text_judge: reads the words.
        face_judge: compares the faces.
        face_buckets: which version of TokBench's sizes of faces.
        cache: keep on disk what the judges say of originals, and look there first (see `imtok.evaluation.cache`).
        protocol: a name out of `PROTOCOLS`, of reconstructions; what differs from it is said.

    Raises:
        ConfigError: an unknown metric, tokenizer, judge or protocol, two tokenizers of one name, or nothing is left.
        DataError: a set that does not exist, or nothing is left.
        MissingWeights: all metrics that were asked for by name lack their networks.
    """
    given = {
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
        published = None if protocol is None else _of_reconstructions(protocol)
        if metrics is None and published is not None:
            metrics = published.metrics
        check_names(metrics, METRICS)
        if not sources or not places or (metrics is not None and not metrics):
            raise ConfigError("name at least one tokenizer, one set of pictures and one metric")
        check_limits(size, count)
        fitted = make_preprocessing(size, fit)
        for source in sources:
            check_name(str(source))
        in_memory = isinstance(places, Mapping)
        sets = places if isinstance(places, Mapping) else _open_sets(places, failures, ranks)
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
        reconstructors = _open_reconstructors(sources, () if in_memory else tuple(places), failures, ranks)
        if wrong_captions:
            reconstructors += _misled(reconstructors)
        if checks:
            reconstructors += self_checks()
        networks, lost = load_networks(metrics, text_judge, face_judge, ranks)
        wanted = None
        if metrics is not None:
            wanted = [metric for metric, _ in failures.survivors("metric", [(one, lost.get(one)) for one in metrics])]
        else:
            for metric, error in lost.items():
                failures.add(error, metric=metric)
        # Sets in memory have no command.
        words = None if in_memory else ["evaluate", *map(str, sources), "--data", *map(str, places)]
        record = _Record(
            reconstructors=reconstructors,
            fit=fitted,
            preprocessing=fitted.rule if size is None else f"{fitted.rule}, {size} px",
            notes=[
                *([_UNCROPPED] if "inception" in networks and not isinstance(fitted, CentreCrop) else []),
                *([] if published is None else published.unchecked),
            ],
            protocol=protocol,
            reproduction={} if words is None else {"command": command_line(evaluate, words, given)},
            failures=failures,
            out=None if out is None or rank() != 0 else Path(out),
        )
        with EvaluationCache(default_file() if cache else None) as answers:
            meters = partial(_meters, networks, face_buckets, answers)

            def measure(name: str, source: Dataset) -> SetResult:
                return evaluate_set(name, source, reconstructors, wanted, meters, fitted, count, failures, ranks)

            for part in _each(sets, measure, failures):
                record.add(part)
                if isinstance(part.ended_by, KeyboardInterrupt):
                    raise part.ended_by
        return record.finish(wanted or ())


@dataclass(kw_only=True)
class _Record:
    """What an evaluation has found so far.

    Attributes:
        notes: what a reader must not miss.
        out: where it is written; None on other ranks than the first.
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
        """One more set, written at once, so that nothing is lost if a later one ends all."""
        self.parts.append(part)
        self._write(self._found())

    def finish(self, wanted: Sequence[str]) -> Evaluation:
        """All of it, with the report; those metrics that no set had anything for are named."""
        measured = {family(metric) for part in self.parts for r in part.results for metric in r.metrics}
        for metric in wanted:
            if metric not in measured:
                self.failures.add("nothing to measure it on", metric=metric)
        found = self._found()
        self._write(found)
        if self.out is not None:
            write_report(found, self.out / REPORT)
        return found

    def _found(self) -> Evaluation:
        published = None if self.protocol is None else get_protocol(self.protocol)
        differing = {} if published is None else {p.data.name: _deviations(published, p, self.fit) for p in self.parts}
        return Evaluation(
            tokenizers={c.name: _about(c) for c in self.reconstructors},
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

    def _write(self, found: Evaluation) -> None:
        if self.out is not None:
            write_results(found.to_json(), (item for part in self.parts for item in part.items), self.out)


def _open_reconstructors(
    sources: Sequence[str | PathLike[str]], data: Sequence[str | PathLike[str]], failures: Failures, ranks: Ranks
) -> list[Reconstructor]:
    """As far as they can be opened."""
    opened = [(str(source), ranks.agree(partial(open_reconstructor, data=data), str(source))) for source in sources]
    return _told_apart(failures.survivors("tokenizer", opened))


def _misled(reconstructors: Sequence[Reconstructor]) -> list[Reconstructor]:
    """Those that hear of captions once more, told wrong ones."""
    found = [
        WrongCaptions(one) for one in reconstructors if isinstance(one, TokenizerReconstructor) and one.text_conditioner
    ]
    if not found:
        say("wrong captions: none of the tokenizers hears captions")
    return [*found]


def _told_apart(opened: Sequence[tuple[str, Reconstructor]]) -> list[Reconstructor]:
    """Reconstructors whose names differ: where that is not so, they are called as they were named.

    Raises:
        ConfigError: even those are alike, or something else in the report is called so.
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


def _each(
    sets: Mapping[str, Dataset], measure: Callable[[str, Dataset], SetResult], failures: Failures
) -> Iterator[SetResult]:
    """What the sets contribute, but for those that fail; the last one's error where all do."""
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


def _of_reconstructions(protocol: str) -> EvaluationProtocol:
    found = get_protocol(protocol)
    if not set(found.metrics) <= set(METRICS):
        raise ConfigError(f"the protocol {protocol} is of generated pictures: imtok evaluate-generated")
    return found


def _deviations(protocol: EvaluationProtocol, part: SetResult, fit: Preprocessing) -> list[str]:
    """What differs from a protocol on a set; its reference are the originals themselves."""
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


def _about(reconstructor: Reconstructor) -> dict[str, Any]:
    about: dict[str, Any] = {"teachers": sorted(reconstructor.teachers), "is_check": reconstructor.is_check}
    return about if reconstructor.sha256 is None else about | {"sha256": reconstructor.sha256}


def load_networks(
    metrics: Sequence[str] | None, text_judge: str, face_judge: str, ranks: Ranks
) -> tuple[dict[str, Any], dict[str, InputError | OSError]]:
    """The networks of some metrics, by what they are for; and why metrics cannot be measured that somebody expects.

    These are all that are asked for by name, those of a judge that is named, and those whose network is here and
    broken. What is missing or broken on one rank is so on all.

    Raises:
        InputError: a judge that cannot judge or is not known.
    """
    needed = {
        "perceptual": ("perceptual/vgg16", {"vgg16_distance"}),
        "lpips": ("perceptual/lpips_vgg", {"lpips"}),
        "frechet": ("vision/efficientnet_lite0", {"fd_efficientnet_lite0"}),
        "inception": ("vision/inception", {"fid", "inception_score"}),
        "text": (text_judge, {"text_accuracy", "text_ned", "text_accuracy_alnum"}),
        "face": (face_judge, {"face_similarity"}),
    }
    networks: dict[str, Any] = {}
    lost: dict[str, InputError | OSError] = {}
    named = {
        use
        for use, judge, usual in (("text", text_judge, TEXT_JUDGE), ("face", face_judge, FACE_JUDGE))
        if judge != usual
    }
    for use, (network, served) in needed.items():
        if metrics is not None and not served & set(metrics):
            continue
        found = ranks.agree(pretrained.load, network)
        if use in _JUDGES and network not in pretrained.REGISTRY:
            unwrap(found)  # there is none of this name
        if not isinstance(found, InputError | OSError):
            networks[use] = found.to(best_device()) if use in _ON_DEVICE else found
            if not isinstance(found, _JUDGES.get(use, object)):
                raise ConfigError(f"{network}: cannot judge {use}s; see imtok weights for the {use} judges")
        elif metrics is not None or use in named or not isinstance(found, pretrained.MissingWeights):
            lost |= dict.fromkeys(served, found)
        elif use not in ("lpips", "inception"):  # few have those, and their stand-ins are measured
            say(f"without {', '.join(sorted(served))}: {found}")
    return networks, lost


def _meters(
    networks: Mapping[str, Any], face_buckets: FaceBuckets, answers: EvaluationCache, total: int
) -> list[Meter[Any]]:
    """Fresh ones for a set of so many pictures."""
    makers: dict[str, Callable[[Any], Meter[Any]]] = {
        "perceptual": PerceptualMeter,
        "lpips": lambda network: PerceptualMeter(network, "lpips"),
        "frechet": lambda network: FrechetMeter(network, cache=answers),
        "inception": lambda network: InceptionMeter(network, total, answers),
        "text": lambda judge: TextMeter(judge, answers),
        "face": lambda judge: FaceMeter(judge, face_buckets, answers),
    }
    return [makers[use](network) for use, network in networks.items()]
