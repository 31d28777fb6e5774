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
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_s_files_are_read_one_picture_at_a_time(save, pictures: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "drawn.npz", pictures)
    source = open_dataset(tmp_path / "drawn.npz")
    assert len(source) == 5
    for index in (0, 3, 4, 1):  # backwards too
        assert (decode(source[index].image) == pictures[index]).all()
    assert source[2].path == "drawn/000002"
    copy = pickle.loads(pickle.dumps(source))  # as a loader's worker gets it
    assert (decode(copy[4].image) == pictures[4]).all()


def test_what_is_packed_is_what_numpy_reads(pictures: np.ndarray, tmp_path: Path) -> None:
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


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "was run"
    objects = np.empty(4, dtype=object)
    objects[:] = [Evil(marker)] * 4
    np.savez(tmp_path / "evil.npz", arr_0=objects, mu=objects, sigma=objects)
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Evil(marker)))
    for name in ("evil.npz", "bare.npz"):
        for act in (open_dataset, lambda place: read_arrays(place, ["mu"])):
            with pytest.raises(DataError) as refused:
                act(str(tmp_path / name))
            assert "\n" not in str(refused.value)
    assert not marker.exists()


def test_other_files_are_refused_in_a_line(pictures: np.ndarray, tmp_path: Path) -> None:
    place = str(tmp_path / "x.npz")

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(place)
        assert "\n" not in str(caught.value)

    np.savez(place, other=pictures)
    refused("no item named 'arr_0.npy'|There is no item")
    np.savez(place, pictures.astype(np.float32))
    refused(r"its arr_0 is float32 \(5, 16, 20, 3\); uint8")
    np.savez(place, pictures[..., 0])
    refused(r"its arr_0 is uint8 \(5, 16, 20\)")
    with zipfile.ZipFile(place, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 16, 20, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(pictures.tobytes())
    refused("truncated; 1000000000 pictures are announced")
    with zipfile.ZipFile(place, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1, 10**5, 10**5, 3)}
        np.lib.format.write_array_header_1_0(member, header)
    refused("100000x100000 is more than 64000000 pixels")
    np.savez_compressed(place, pictures)
    with zipfile.ZipFile(place) as archive:
        (member,) = archive.infolist()
    packed = bytearray(Path(place).read_bytes())
    start = member.header_offset + 30 + len(member.filename) + int.from_bytes(packed[28:30], "little")
    packed[start : start + 8] = b"\xff" * 8
    Path(place).write_bytes(packed)
    refused("no .npz file with pictures")
    Path(place).write_bytes(b"PK nonsense")
    refused("no .npz file with pictures")


def test_a_pack_that_fails_leaves_nothing(pictures: np.ndarray, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(pictures[0]))
    (folder / "b.png").write_bytes(encode(pictures[0][:, :18].copy()))
    assert main(["pack", str(folder), str(tmp_path / "out.npz")]) == 2
    assert "b.png: has 18 x 16 pixels, the first picture 20 x 16" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["pictures"]
    assert main(["pack", str(folder), str(tmp_path / "out.npz"), "--size", "16"]) == 0
    assert len(open_dataset(tmp_path / "out.npz")) == 2
