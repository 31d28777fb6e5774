"""Detect failed training runs, and report the reason."""

import math
from collections.abc import Mapping

from imtok.training.run import WatchdogConfig


class Watchdog:
    """Examines the numbers of every step.

    NaN and infinity are reported at once; a collapsed codebook and a discriminator that has won, if they last for
    `patience` steps.
    """

    def __init__(self, config: WatchdogConfig) -> None:
        self.config = config
        self.symptoms: dict[str, int] = {}
        """Number of consecutive steps that each symptom has lasted; part of the resume state."""

    def examine(self, numbers: Mapping[str, float]) -> str | None:
        """Return the reason why training should not continue, or None.

        Args:
            numbers: this step's losses, gradient norms and statistics, by name.
        """
        for name, value in numbers.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        used, discriminator_loss = numbers.get("codebook_used"), numbers.get("discriminator")
        self._count("codebook", used is not None and used < self.config.min_codebook_used)
        self._count(
            "discriminator", discriminator_loss is not None and discriminator_loss < self.config.min_discriminator_loss
        )
        if self.symptoms["codebook"] >= self.config.patience:
            return (
                f"the codebook has collapsed: a step used {used:.2%} of the codes that it could use, for "
                f"{self.config.patience} steps; try a lower learning rate or more steps without quantization"
            )
        if self.symptoms["discriminator"] >= self.config.patience:
            return (
                f"the discriminator has won: its loss was below {self.config.min_discriminator_loss} for "
                f"{self.config.patience} steps; try a smaller adversarial_weight or a later adversarial_start"
            )
        return None

    def _count(self, symptom: str, present: bool) -> None:
        self.symptoms[symptom] = self.symptoms.get(symptom, 0) + 1 if present else 0
