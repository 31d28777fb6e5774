"""Shared code of the presets."""

import dataclasses
from typing import Any

from imtok.training.run import Phase, TrainingConfig

IMAGENET = 1_281_167
"""Number of pictures in ImageNet's training set: an epoch in the papers."""


def for_tests(training: TrainingConfig, *phases: Phase, **changes: Any) -> TrainingConfig:
    """Return settings for a short run with AdamW, which suits any model, with frequent logs, saves and evaluations."""
    optimizer = dataclasses.replace(training.optimizer, algorithm="adamw")
    often = {"log_every": 1, "save_every": 4, "preview_every": 4, "evaluate_every": 6}
    few = {"phases": phases, "global_batch_size": 4, "evaluation_pictures": 8, "optimizer": optimizer}
    return dataclasses.replace(training, **few, **often, **changes)
