"""`atp-export doctor`: what it prints, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from atp_export.commands import doctor
from atp_export.doctor import Finding


def run(*, bundle: Path | None = None, as_json: bool = False) -> int:
    return doctor.run(Namespace(bundle=bundle, json=as_json))


def test_a_machine_is_described_whatever_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert capsys.readouterr().out.startswith("✓ Python: ")


def test_a_bundle_is_described_behind_the_machine(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bundle=tiny_bundle, as_json=True)
    subjects = [finding["subject"] for finding in json.loads(capsys.readouterr().out)]
    assert subjects.index("disk") + 1 == subjects.index("files")
    assert subjects[-1] == "running"


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (None, 0), (False, 3)])
def test_the_exit_code_says_whether_something_stands_in_the_bundles_way(
    ok: bool | None, code: int, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (Finding("segment_0", "as it is", ok),)
    monkeypatch.setattr(doctor, "examine_bundle", lambda *_: found)
    assert run(bundle=tiny_bundle) == code


def test_the_doctor_needs_no_package_at_all(tiny_bundle: Path) -> None:
    script = (
        "import sys\n"
        "from argparse import Namespace\n"
        "from pathlib import Path\n"
        "from atp_export.commands.doctor import run\n"
        "run(Namespace(bundle=Path(sys.argv[1]), json=False))\n"
        "heavy = {'torch', 'numpy', 'rich', 'onnx', 'psutil', 'tensorrt'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tiny_bundle], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "✓ Python" in done.stdout
