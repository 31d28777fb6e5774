import dataclasses
import json
from pathlib import Path

import pytest

from imtok import presets
from imtok.config import ConfigError, config, from_dict, read_json, to_dict
from imtok.tokenizers.ema_vq import EMAVQConfig
from imtok.tokenizers.vq import VQConfig
from imtok.tokenizers.vqgan import AdapterConfig
from imtok.training.run import OptimizerConfig


@config
class Inner:
    size: int = 3
    kinds: tuple[str, ...] = ("a", "b")


@config
class Outer:
    inner: Inner = Inner()
    share: float | None = None


def test_round_trip_through_json() -> None:
    outer = Outer(inner=Inner(size=5, kinds=("x",)), share=0.25)
    assert from_dict(Outer, json.loads(json.dumps(to_dict(outer)))) == outer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"sizes": 4}}, "somewhere: inner.sizes: no such setting"),
        ({"colour": 1}, "somewhere: colour: no such setting"),
        ({"inner": {"size": "many"}}, "somewhere: inner.size: .*integer"),
        ({"format_version": 99}, "somewhere: format version 99"),
    ],
)
def test_rejects_invalid_values_with_a_one_line_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Outer, values, "somewhere")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rejects_non_finite_numbers(value: float) -> None:
    for make, where in (
        (lambda: EMAVQConfig(restart_threshold=value), "ema_vq: restart_threshold"),
        (lambda: VQConfig(entropy_temperature=value), "vq: entropy_temperature"),
        (lambda: OptimizerConfig(betas=(0.9, value)), "optimizer: betas"),
        (lambda: from_dict(AdapterConfig, {"mlp_ratio": value}), "adapter: mlp_ratio"),
    ):
        with pytest.raises(ConfigError, match=f"{where} = .* must be finite"):
            make()


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().size = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_read_json_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    for name, message in (("broken", "not JSON"), ("list", "expected a JSON object"), ("absent", "no such file")):
        with pytest.raises(ConfigError, match=f"{name}.json: .*{message}"):
            read_json(tmp_path / f"{name}.json")


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_round_trips_through_json(name: str) -> None:
    preset = presets.get_run(name)
    assert from_dict(type(preset), json.loads(json.dumps(to_dict(preset)))) == preset
    assert preset.name == name
