from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from atp_export.doctor import Finding, examine, print_findings


def finding(subject: str) -> Finding:
    return next(found for found in examine() if found.subject.startswith(subject))


def test_the_interpreter_and_the_machine_are_named() -> None:
    assert finding("Python").found == sys.version.split()[0]
    assert finding("machine").found.startswith("Linux ")


def test_memory_and_disk_are_given_in_gigabytes() -> None:
    for subject in ("memory", "disk"):
        assert " GB" in finding(subject).found
        assert finding(subject).ok


def test_installed_packages_have_their_versions() -> None:
    found = finding("export")
    assert found.ok
    assert f"onnx {metadata.version('onnx')}" in found.found


def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = finding("export")
    assert not found.ok
    assert "torch missing" in found.found
    print_findings((found,))
    shown = capsys.readouterr().out
    assert shown.startswith("✗ export")
    assert "pip install 'atp-llava[export]'" in shown


def test_what_is_there_is_ticked(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings((Finding("disk", "10 GB [free]", ok=True, fix="never shown"),))
    assert capsys.readouterr().out == "✓ disk: 10 GB [free]\n"


def test_the_doctor_needs_no_package_at_all() -> None:
    script = (
        "import sys\n"
        "from atp_export.cli import main\n"
        "code = main(['doctor'])\n"
        "heavy = {'torch', 'numpy', 'rich', 'onnx', 'psutil'} & sys.modules.keys()\n"
        "assert code == 0 and not heavy, (code, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "✓ Python" in done.stdout
