import os
from collections.abc import Callable
from pathlib import Path

import pytest

from atp_runtime import stamps
from atp_runtime.bundle import Bundle, verify_files
from atp_runtime.errors import CheckFailedError, InputError, MachineError
from atp_runtime.manifest import Manifest, read_manifest

BIG = 33 << 20
WriteFiles = Callable[[Path, Manifest], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def big_file(own_bundle: Path, write_files: WriteFiles) -> Path:
    """A file of the bundle that is big enough to be remembered once hashed."""
    big = own_bundle / "onnx" / "segment_0.data"
    with big.open("wb") as file:
        file.truncate(BIG)
    write_files(own_bundle, read_manifest(own_bundle))
    return big


def flip_a_bit(file: Path, at: int = 0) -> None:
    """Changes the file in place, giving it back its modification time."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_open_gives_manifest_and_paths_when_all_files_are_as_exported(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    assert bundle.manifest == read_manifest(own_bundle)
    assert bundle.path("onnx/head.onnx") == own_bundle.resolve() / "onnx" / "head.onnx"


def test_open_raises_when_the_directory_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        Bundle.open(tmp_path / "nothing")


def test_open_raises_when_export_did_not_finish(own_bundle: Path) -> None:
    (own_bundle / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        Bundle.open(own_bundle)


def test_open_names_the_file_when_it_is_missing(own_bundle: Path) -> None:
    (own_bundle / "onnx" / "head.onnx").unlink()
    with pytest.raises(InputError, match=r"onnx/head\.onnx is missing"):
        Bundle.open(own_bundle)


def test_open_names_the_file_when_a_directory_is_in_its_place(own_bundle: Path) -> None:
    (own_bundle / "onnx" / "head.onnx").unlink()
    (own_bundle / "onnx" / "head.onnx").mkdir()
    with pytest.raises(InputError, match=r"onnx/head\.onnx is missing"):
        Bundle.open(own_bundle)


def test_open_names_file_and_sizes_when_a_copy_was_cut_short(own_bundle: Path) -> None:
    file = own_bundle / "weights" / "embed_tokens.npy"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(InputError, match=rf"embed_tokens\.npy: {size - 1} bytes"):
        Bundle.open(own_bundle)


def test_open_names_the_file_when_something_was_appended(own_bundle: Path) -> None:
    with (own_bundle / "onnx" / "head.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckFailedError, match=r"head\.onnx"):
        Bundle.open(own_bundle)


@pytest.mark.parametrize("verify", ["once", "full"])
def test_open_names_the_file_when_one_bit_differs(own_bundle: Path, verify: str) -> None:
    Bundle.open(own_bundle)
    flip_a_bit(own_bundle / "onnx" / "segment_1.onnx", at=100)
    with pytest.raises(CheckFailedError, match=r"segment_1\.onnx"):
        Bundle.open(own_bundle, verify=verify)


def test_open_raises_when_a_symbolic_link_leaves_the_bundle(own_bundle: Path) -> None:
    graph = own_bundle / "onnx" / "head.onnx"
    outside = own_bundle.parent / "outside.onnx"
    graph.rename(outside)
    graph.symlink_to(outside)
    with pytest.raises(InputError, match=r"outside\.onnx"):
        Bundle.open(own_bundle)


def test_open_follows_a_symbolic_link_when_it_stays_inside(own_bundle: Path) -> None:
    graph = own_bundle / "onnx" / "head.onnx"
    moved = graph.rename(own_bundle / "moved.onnx")
    graph.symlink_to(moved)
    assert Bundle.open(own_bundle).path("onnx/head.onnx") == moved.resolve()


def test_open_accepts_a_bundle_when_its_directory_is_a_symbolic_link(own_bundle: Path) -> None:
    link = own_bundle.parent / "link"
    link.symlink_to(own_bundle)
    assert Bundle.open(link).root == own_bundle.resolve()


@pytest.mark.parametrize("name", ["../x", "onnx/../../x", "/etc/hostname"])
def test_path_raises_when_a_name_leads_out_of_the_bundle(own_bundle: Path, name: str) -> None:
    with pytest.raises(InputError, match="leads to"):
        Bundle.open(own_bundle).path(name)


def test_open_raises_when_a_file_cannot_be_read(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable = own_bundle / "onnx" / "head.onnx"
    real_open = Path.open

    def failing_open(path: Path, *args: object, **kwargs: object) -> object:
        if path == unreadable.resolve():
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing_open)
    with pytest.raises(MachineError, match=r"head\.onnx: Permission denied"):
        Bundle.open(own_bundle)


def test_open_trusts_the_stamp_of_a_big_file_unless_asked_for_a_full_check(big_file: Path) -> None:
    root = big_file.parent.parent
    record = Bundle.open(root).manifest.files["onnx/segment_0.data"]
    flip_a_bit(big_file, at=BIG // 2)
    stamps.stamp(big_file.resolve(), record.sha256, big_file.stat())
    Bundle.open(root)
    with pytest.raises(CheckFailedError, match=r"segment_0\.data"):
        Bundle.open(root, verify="full")


def test_open_hashes_a_big_file_again_when_it_changed_behind_an_old_modification_time(
    big_file: Path,
) -> None:
    root = big_file.parent.parent
    Bundle.open(root)
    flip_a_bit(big_file, at=BIG - 1)
    with pytest.raises(CheckFailedError, match=r"segment_0\.data"):
        Bundle.open(root)


def test_open_hashes_a_big_file_again_when_the_stamp_is_of_another_hash(big_file: Path) -> None:
    root = big_file.parent.parent
    flip_a_bit(big_file)
    stamps.stamp(big_file.resolve(), "0" * 64, big_file.stat())
    with pytest.raises(CheckFailedError, match=r"segment_0\.data"):
        Bundle.open(root)


def test_open_works_when_the_cache_cannot_be_written(
    big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = big_file.parent.parent
    not_a_folder = root.parent / "file"
    not_a_folder.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(not_a_folder))
    Bundle.open(root)
    flip_a_bit(big_file)
    with pytest.raises(CheckFailedError):
        Bundle.open(root)


def test_open_leaves_stamps_of_big_files_only(big_file: Path, cache: Path) -> None:
    Bundle.open(big_file.parent.parent)
    (stamp,) = [path for path in cache.rglob("*") if path.is_file()]
    assert str(big_file.resolve()) in stamp.read_text()


def test_verify_files_reports_every_file_up_to_the_total(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    reports: list[tuple[str, int, int]] = []
    verify_files(bundle, lambda *report: reports.append(report))
    sizes = {name: record.bytes for name, record in bundle.manifest.files.items()}
    assert {name for name, _, _ in reports} == set(sizes)
    done = [count for _, count, _ in reports]
    assert done == sorted(done)
    assert done[-1] == sum(sizes.values())
    assert {total for _, _, total in reports} == {sum(sizes.values())}


def test_verify_files_raises_when_a_stamped_file_changed(big_file: Path) -> None:
    bundle = Bundle.open(big_file.parent.parent)
    flip_a_bit(big_file, at=BIG - 1)
    sha256 = bundle.manifest.files["onnx/segment_0.data"].sha256
    stamps.stamp(big_file.resolve(), sha256, big_file.stat())
    with pytest.raises(CheckFailedError, match=r"segment_0\.data"):
        verify_files(bundle, lambda *_: None)
