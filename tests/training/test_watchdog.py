import pytest

from imtok.training.run import WatchdogConfig
from imtok.training.watchdog import Watchdog


def test_healthy_numbers_raise_no_alarm() -> None:
    watchdog = Watchdog(WatchdogConfig(patience=3))
    assert all(watchdog.examine({"l1": 0.1, "codebook_used": 0.5, "discriminator": 0.9}) is None for _ in range(10))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_reported_at_once(value: float) -> None:
    assert "text is" in (Watchdog(WatchdogConfig()).examine({"text": value}) or "")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"codebook_used": 0.005}, "codebook has collapsed"), ({"discriminator": 0.001}, "discriminator has won")],
)
def test_other_symptoms_are_reported_when_they_last(numbers: dict[str, float], message: str) -> None:
    watchdog = Watchdog(WatchdogConfig(patience=3))
    assert watchdog.examine(numbers) is None
    assert watchdog.examine(numbers) is None
    assert message in (watchdog.examine(numbers) or "")


def test_a_good_step_in_between_resets_the_count() -> None:
    watchdog = Watchdog(WatchdogConfig(patience=2))
    for used in (0.001, 0.5, 0.001, 0.5, 0.001):
        assert watchdog.examine({"codebook_used": used}) is None


def test_inactive_discriminator_gives_no_symptom() -> None:
    watchdog = Watchdog(WatchdogConfig(patience=1))
    assert watchdog.examine({"l1": 0.1}) is None
