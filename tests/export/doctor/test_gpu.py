"""The CUDA driver, asked through an interface like that of `ctypes`."""

from __future__ import annotations

from typing import Any

import pytest

from atp_export.doctor.gpu import Gpu, ask_driver

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


class Driver:
    """Writes through pointers, as the library does; `fails` names the function that does not."""

    def __init__(self, fails: str = "") -> None:
        self._fails = fails

    def _code(self, name: str) -> int:
        return _NO_DEVICE if name == self._fails else 0

    def cuInit(self, flags: int) -> int:  # noqa: N802 - CUDA's name
        return self._code("cuInit")

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 0
        return self._code("cuDeviceGet")

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12060
        return self._code("cuDriverGetVersion")

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return self._code("cuDeviceGetName")

    def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[number]
        return self._code("cuDeviceGetAttribute")

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {_NO_DEVICE: b"no CUDA-capable device is detected"}[code]
        return 0


def test_name_compute_capability_and_cuda_are_read() -> None:
    gpu = ask_driver(Driver())
    assert gpu == Gpu("Orin", 87, "12.6")
    assert str(gpu) == "Orin (SM 8.7)"


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_what_the_driver_says_is_passed_on(fails: str) -> None:
    with pytest.raises(OSError, match=r"no CUDA-capable device is detected \(error 100\)"):
        ask_driver(Driver(fails))
