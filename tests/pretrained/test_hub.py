import sys
from pathlib import Path

import pytest

from imtok.cli import main
from imtok.config import ConfigError
from imtok.pretrained import status
from imtok.pretrained.hub import find_hub_file

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
errors = pytest.importorskip("huggingface_hub.errors")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_finds_a_file_in_the_hub_clients_cache(hub_cache: Path) -> None:
    repository = hub_cache / "models--owner--network"
    snapshot = repository / "snapshots" / COMMIT / "weights"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "model.safetensors").write_bytes(b"tensors")
    for address in (
        "hf://owner/network/weights/model.safetensors",
        f"hf://owner/network@{COMMIT}/weights/model.safetensors",
    ):
        found = find_hub_file(address)
        assert found is not None
        assert found.read_bytes() == b"tensors"
    assert find_hub_file("hf://owner/network/other.safetensors") is None


def test_uncached_file_is_downloaded_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(repository: str, path: str, *, revision: str | None, local_files_only: bool) -> str:
        calls.append((repository, path, revision, local_files_only))
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not here")
        return "/somewhere/model.pth"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_hub_file("hf://owner/network@v2/model.pth") is None
    assert find_hub_file("hf://owner/network@v2/model.pth", download=True) == Path("/somewhere/model.pth")
    assert calls == [("owner/network", "model.pth", "v2", True), ("owner/network", "model.pth", "v2", False)]


def test_without_the_hub_client_its_files_are_reported_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["weights", "fetch", "vision/dinov2_small"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'imtok[networks]'" in error
    assert error.count("\n") == 1
    assert any(row.name == "vision/dinov2_small" for row in status())


@pytest.mark.parametrize("address", ["hf://owner", "hf://owner/network", "hf:///network/file", "owner/network/file"])
def test_rejects_malformed_addresses(address: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://owner/repository/path"):
        find_hub_file(address)
    with pytest.raises(ConfigError, match=r"^hf://a b/c d/x: no address of the hub \([^\n]*\)$"):
        find_hub_file("hf://a b/c d/x")
