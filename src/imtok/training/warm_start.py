"""A run that begins with trained weights."""

from imtok.config import ConfigError, to_dict
from imtok.generators.catalog import read_run
from imtok.tokenizers.catalog import load
from imtok.training.generator_task import GeneratorTask
from imtok.training.run import GeneratorRunConfig
from imtok.training.same_settings import check_same_model
from imtok.training.tasks import TokenizerTask


def start_from(task: TokenizerTask, source: str) -> None:
    """Put the weights of a trained tokenizer into the task's.

    Raises:
        ConfigError: its architecture differs, or a phase would forget its codebook.
    """
    if any(not phase.quantize for phase in task.config.training.phases):
        raise ConfigError(
            f"--init-from {source}: {task.config.name} begins without quantization, which redraws the codebook; "
            "use a preset for fine-tuning"
        )
    original = load(source)
    kind = task.tokenizer.config.kind
    if original.config.kind != kind:
        raise ConfigError(f"--init-from {source}: is of the kind {original.config.kind}, this run's tokenizer {kind}")
    check_same_model({"tokenizer": to_dict(task.tokenizer.config)}, {"tokenizer": to_dict(original.config)}, source)
    task.tokenizer.load_weights(original.weights(), f"--init-from {source}")


def start_generator_from(task: GeneratorTask, config: GeneratorRunConfig, source: str) -> None:
    """Put the weights of a trained generator into the task's.

    Raises:
        ConfigError: it is of another kind, writes for another tokenizer, knows other classes, or is built otherwise.
    """
    run, theirs, of = read_run(source)
    ours = config.generator
    if theirs.kind != ours.kind:
        raise ConfigError(f"--init-from {source}: is of the kind {theirs.kind}, this run's generator {ours.kind}")
    assert config.tokenizer is not None
    if of.sha256 != config.tokenizer.sha256:
        raise ConfigError(f"--init-from {source}: writes for another tokenizer than that of these data")
    if (known := getattr(theirs, "classes", ())) != (wanted := getattr(ours, "classes", ())):
        raise ConfigError(f"--init-from {source}: knows the classes {known}, these data have {wanted}")
    check_same_model({"generator": to_dict(ours)}, {"generator": to_dict(theirs)}, source)
    task.generator.load_weights(run.read_model(), f"--init-from {source}")
