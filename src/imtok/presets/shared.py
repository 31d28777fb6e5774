"""What presets of several families share."""

import dataclasses
from typing import Any

from imtok.training.run import Phase, TrainingConfig

IMAGENET = 1_281_167
"""Pictures of ImageNet's training set: an epoch of those papers."""


def for_tests(training: TrainingConfig, *phases: Phase, **changes: Any) -> TrainingConfig:
    """A run of some twelve steps, saved and looked at every few."""
    often = {"log_every": 1, "save_every": 4, "preview_every": 4, "evaluate_every": 6}
    return dataclasses.replace(training, phases=phases, global_batch_size=4, evaluation_pictures=8, **often, **changes)
