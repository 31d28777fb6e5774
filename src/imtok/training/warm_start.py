"""Initialize a run from trained weights."""

from imtok.config import ConfigError, to_dict
from imtok.generators.catalog import read_run
from imtok.tokenizers.catalog import load
from imtok.training.generator_task import GeneratorTask
from imtok.training.run import GeneratorRunConfig
from imtok.training.same_settings import check_same_model
from imtok.training.tasks import TokenizerTask


def start_from(task: TokenizerTask, source: str) -> None:
    """Load the weights of a trained tokenizer into that of the task.

    Raises:
        ConfigError: the architectures differ, or a phase without quantization would overwrite the codebook.
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
    """Load the weights of a trained generator into that of the task.

    Raises:
        ConfigError: the kind, the tokenizer, the classes or the architecture of the generators differ.
    """
    run, theirs, tokenizer = read_run(source)
    ours = config.generator
    if theirs.kind != ours.kind:
        raise ConfigError(f"--init-from {source}: is of the kind {theirs.kind}, this run's generator {ours.kind}")
    assert config.tokenizer is not None
    if tokenizer.sha256 != config.tokenizer.sha256:
        raise ConfigError(f"--init-from {source}: writes for another tokenizer than that of these data")
    if (known := getattr(theirs, "classes", ())) != (wanted := getattr(ours, "classes", ())):
        raise ConfigError(f"--init-from {source}: knows the classes {known}, these data have {wanted}")
    check_same_model({"generator": to_dict(ours)}, {"generator": to_dict(theirs)}, source)
    task.generator.load_weights(run.read_model(), f"--init-from {source}")
