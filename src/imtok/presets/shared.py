"""What presets of several families share."""

import dataclasses
from typing import Any

from imtok.training.run import Phase, TrainingConfig

IMAGENET = 1_281_167
"""Pictures of ImageNet's training set: an epoch of those papers."""


def for_tests(training: TrainingConfig, *phases: Phase, **changes: Any) -> TrainingConfig:
    """A run of some twelve steps by AdamW, which any model can have, saved and looked at every few."""
    optimizer = dataclasses.replace(training.optimizer, algorithm="adamw")
    often = {"log_every": 1, "save_every": 4, "preview_every": 4, "evaluate_every": 6}
    few = {"phases": phases, "global_batch_size": 4, "evaluation_pictures": 8, "optimizer": optimizer}
    return dataclasses.replace(training, **few, **often, **changes)
