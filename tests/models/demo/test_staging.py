from pathlib import Path

import pytest

from atp_models.demo.staging import put_in_place, refuse_foreign, staging
from atp_runtime.errors import InputError


def test_a_staged_directory_takes_its_place_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place"
    with staging(place) as directory:
        (directory / "new").touch()
        assert not place.exists()
        put_in_place(directory, place)
    assert [path.name for path in place.iterdir()] == ["new"]
    assert list(place.parent.iterdir()) == [place]


def test_a_staged_directory_replaces_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()
    with staging(place) as directory:
        (directory / "new").touch()
        put_in_place(directory, place)
    assert [path.name for path in place.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [place]


def test_a_failure_leaves_the_old_directory_alone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()

    def interrupted() -> None:
        with staging(place) as directory:
            (directory / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in place.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [place]


def test_only_files_of_an_earlier_run_may_be_replaced(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "nothing", ())
    (tmp_path / "ours").touch()
    refuse_foreign(tmp_path, ("ours", "gone"))
    (tmp_path / "theirs").touch()
    with pytest.raises(InputError, match="theirs"):
        refuse_foreign(tmp_path, ("ours",))
    with pytest.raises(InputError, match="not a directory"):
        refuse_foreign(tmp_path / "ours", ("ours",))
