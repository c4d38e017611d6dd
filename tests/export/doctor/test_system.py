from __future__ import annotations

import sys
from importlib import metadata

import pytest

from atp_export.doctor.system import package_version, run_program


def test_a_program_is_run_for_its_output() -> None:
    assert run_program(sys.executable, "-c", "print('said')") == "said\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("/no/such/program",), "No such file"),
        ((sys.executable, "-c", "import sys; sys.exit('refused')"), "refused"),
        ((sys.executable, "-c", "import sys; sys.exit(5)"), "exit code 5"),
    ],
)
def test_a_program_that_fails_is_an_error_of_the_system(words: tuple[str, ...], part: str) -> None:
    with pytest.raises(OSError, match=part):
        run_program(*words)


def test_a_program_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atp_export.doctor.system._PATIENCE", 0.05)
    with pytest.raises(OSError, match="did not answer"):
        run_program(sys.executable, "-c", "import time; time.sleep(60)")


def test_packages_have_versions_where_they_are_installed() -> None:
    assert package_version("numpy") == metadata.version("numpy")
    assert package_version("no-such-package") is None
