"""Fixtures that more than one folder of tests uses."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from imtok import pretrained


@cache
def _load(name: str) -> Any:
    try:
        return pretrained.load(name)
    except pretrained.MissingWeights as error:
        return error


@pytest.fixture(scope="session")
def needs() -> Callable[[str], Any]:
    """`needs("role/name")` is that network, one copy for the session.

    A test that needs a missing program is skipped; networks that packages carry are there after `imtok weights fetch`.
    """

    def load(name: str) -> Any:
        network = _load(name)
        if isinstance(network, pretrained.MissingWeights):
            stop = pytest.fail if pretrained.SOURCES[name].package else pytest.skip
            stop(str(network))
        return network

    return load
