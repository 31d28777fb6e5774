import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from imtok.cli import main
from imtok.data.npz import NpzWriter, holds_pictures, read_arrays
from imtok.data.pictures import decode, encode
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError


class Evil:
    """Creates a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_files_are_read_one_picture_at_a_time(save, pictures: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "drawn.npz", pictures)
    source = open_dataset(tmp_path / "drawn.npz")
    assert len(source) == 5
    for index in (0, 3, 4, 1):  # backwards too
        assert (decode(source[index].image) == pictures[index]).all()
    assert source[2].path == "drawn/000002"
    copy = pickle.loads(pickle.dumps(source))  # as a loader's worker gets it
    assert (decode(copy[4].image) == pictures[4]).all()


def test_numpy_reads_packed_pictures(pictures: np.ndarray, tmp_path: Path) -> None:
    for index, picture in enumerate(pictures):
        (tmp_path / f"{index}.png").write_bytes(encode(picture))
    assert main(["pack", str(tmp_path), str(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz", allow_pickle=False) as found:
        assert found.files == ["arr_0"]
        assert (found["arr_0"] == pictures).all()
    with NpzWriter(tmp_path / "both.npz", 1) as writer:
        writer.write(pictures[0], "a")
        writer.add("mu", np.arange(3.0))
    assert read_arrays(str(tmp_path / "both.npz"), ["mu", "sigma"]).keys() == {"mu"}
    assert holds_pictures(str(tmp_path / "both.npz"))


def test_pickled_code_is_never_executed(tmp_path: Path) -> None:
    marker = tmp_path / "was run"
    objects = np.empty(4, dtype=object)
    objects[:] = [Evil(marker)] * 4
    np.savez(tmp_path / "evil.npz", arr_0=objects, mu=objects, sigma=objects)
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Evil(marker)))
    for name in ("evil.npz", "bare.npz"):
        for read in (open_dataset, lambda path: read_arrays(path, ["mu"])):
            with pytest.raises(DataError) as caught:
                read(str(tmp_path / name))
            assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_rejects_invalid_files_with_one_line_messages(pictures: np.ndarray, tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")

    def assert_rejected(message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(path)
        assert "\n" not in str(caught.value)

    np.savez(path, other=pictures)
    assert_rejected("no item named 'arr_0.npy'|There is no item")
    np.savez(path, pictures.astype(np.float32))
    assert_rejected(r"its arr_0 is float32 \(5, 16, 20, 3\); uint8")
    np.savez(path, pictures[..., 0])
    assert_rejected(r"its arr_0 is uint8 \(5, 16, 20\)")
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 16, 20, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(pictures.tobytes())
    assert_rejected("truncated; 1000000000 pictures are announced")
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1, 10**5, 10**5, 3)}
        np.lib.format.write_array_header_1_0(member, header)
    assert_rejected("100000x100000 is more than 64000000 pixels")
    np.savez_compressed(path, pictures)
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
    packed = bytearray(Path(path).read_bytes())
    start = member.header_offset + 30 + len(member.filename) + int.from_bytes(packed[28:30], "little")
    packed[start : start + 8] = b"\xff" * 8
    Path(path).write_bytes(packed)
    assert_rejected("no .npz file with pictures")
    Path(path).write_bytes(b"PK nonsense")
    assert_rejected("no .npz file with pictures")


def test_failed_pack_leaves_no_file(pictures: np.ndarray, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(pictures[0]))
    (folder / "b.png").write_bytes(encode(pictures[0][:, :18].copy()))
    assert main(["pack", str(folder), str(tmp_path / "out.npz")]) == 2
    assert "b.png: has 18 x 16 pixels, the first picture 20 x 16" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["pictures"]
    assert main(["pack", str(folder), str(tmp_path / "out.npz"), "--size", "16"]) == 0
    assert len(open_dataset(tmp_path / "out.npz")) == 2
