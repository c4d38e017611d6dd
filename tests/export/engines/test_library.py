from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from atp_export.engines import library
from atp_export.engines.library import device_library
from atp_runtime.errors import MachineError

if TYPE_CHECKING:
    from atp_export.engines.library import Library


class OlderNetwork:
    """As of TensorRT 10.3."""

    def add_softmax(self) -> None: ...


def test_native_operators_are_looked_for(rtx: Library) -> None:
    assert rtx.has_native_operators

    class Older:
        INetworkDefinition = OlderNetwork

    assert not library.Library(rtx.target, Older).has_native_operators


@pytest.mark.parametrize(
    ("missing", "told"), [("tensorrt", "JetPack"), ("polygraphy.config", "pip install")]
)
def test_what_is_missing_is_told_with_the_way_to_it(
    monkeypatch: pytest.MonkeyPatch, missing: str, told: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(Builder=object))
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    with pytest.raises(MachineError, match=missing.partition(".")[0]) as caught:
        device_library()
    assert told in caught.value.fix


def test_stubs_are_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    with pytest.raises(MachineError, match="type stubs"):
        device_library()


def test_one_process_does_not_mix_the_two_libraries(rtx: Library) -> None:
    """Polygraphy has decided by then, and would drive the wrong one."""
    script = (
        "import sys, types\n"
        "from atp_export.engines.library import check_library, device_library\n"
        "check_library()\n"
        "sys.modules['tensorrt'] = types.SimpleNamespace(Builder=object)\n"
        "try:\n"
        "    device_library()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert "not both" in done.stdout
