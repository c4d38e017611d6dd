"""The GPU, by the CUDA driver: no toolkit and no package is needed.

Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """The first GPU that CUDA lists.

    Attributes:
        name: As the driver calls it.
        sm: Compute capability, major * 10 + minor: 87 on Orin.
        cuda: The newest CUDA that the driver serves.
    """

    name: str
    sm: int
    cuda: str

    def __str__(self) -> str:
        """Name and compute capability."""
        return f"{self.name} (SM {self.sm // 10}.{self.sm % 10})"


def find_gpu() -> Gpu:
    """Asks the CUDA driver.

    Raises:
        OSError: There is no driver, or no GPU that it can use.
    """
    return ask_driver(ctypes.CDLL(_LIBRARY))


def ask_driver(driver: Any) -> Gpu:
    """Asks a driver that is loaded.

    Args:
        driver: libcuda, as `ctypes` loads it.

    Raises:
        OSError: It has no GPU that it can use.
    """
    _check(driver, driver.cuInit(0))
    device, version = c_int(), c_int()
    _check(driver, driver.cuDeviceGet(byref(device), 0))
    _check(driver, driver.cuDriverGetVersion(byref(version)))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(driver, driver.cuDeviceGetName(name, _NAME_BYTES, device))
    sm = 10 * _attribute(driver, _MAJOR, device) + _attribute(driver, _MINOR, device)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), sm, cuda)


def _attribute(driver: Any, number: int, device: c_int) -> int:
    value = c_int()
    _check(driver, driver.cuDeviceGetAttribute(byref(value), number, device))
    return value.value


def _check(driver: Any, code: int) -> None:
    if code == 0:
        return
    said = c_char_p()
    driver.cuGetErrorString(code, byref(said))
    told = said.value.decode(errors="replace") if said.value else "unknown"
    raise OSError(f"the CUDA driver says: {told} (error {code})")
