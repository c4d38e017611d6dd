import shutil
from pathlib import Path

import pytest

from atp_models.demo.disk import disk_failures_explained, require_space
from atp_runtime.errors import MachineError


def test_require_space_passes_when_the_bytes_fit(tmp_path: Path) -> None:
    require_space(tmp_path, 1)


def test_require_space_raises_when_more_than_the_disk_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=str(tmp_path)):
        require_space(tmp_path, shutil.disk_usage(tmp_path).total + 1)


def test_a_write_to_a_full_disk_becomes_a_machine_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught, disk_failures_explained(tmp_path):
        Path("/dev/full").write_text("anything", encoding="utf-8")
    assert caught.value.why == "the disk is full"
    assert caught.value.exit_code == 3


def test_a_write_below_a_file_becomes_a_machine_error_that_blames_no_space(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError) as caught, disk_failures_explained(tmp_path):
        (tmp_path / "file" / "below").write_text("anything", encoding="utf-8")
    assert "full" not in caught.value.why
