"""Power, temperature and clocks while a bundle is measured, from Linux's own files.

A Jetson's power monitors (INA3221), thermal zones, GPU and CPU clocks; the thermal zones and clocks
of other machines where they have some. The paths and forms are those that owners of Orin modules
publish; none was read on a device of this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WATTS, CELSIUS, MEGAHERTZ, STATE = "W", "°C", "MHz", "cooling"
TOTAL = ("VDD_IN", "POM_5V_IN", "SYS_VIN")
"""Rails that feed a whole module, under the names that boards give them."""

_MONITORS = "sys/class/hwmon/hwmon*"
_CHANNELS = 8
_ZONES = "sys/class/thermal/thermal_zone*"
_COOLERS = "sys/class/thermal/cooling_device*"
# 17000000.gpu since L4T R36, 17000000.ga10b before.
_GPUS = ("sys/class/devfreq/*.gpu", "sys/class/devfreq/*.ga10b")
_CPU = "sys/devices/system/cpu/cpufreq/policy*"


@dataclass(frozen=True)
class Sensor:
    """Something that can be read again and again.

    Attributes:
        name: As the system calls it.
        unit: `WATTS`, `CELSIUS`, `MEGAHERTZ`, or `STATE`: how far a fan or a limit of clocks is
            turned up, 0 for not at all.
        read: Its value now; raises OSError or ValueError where it cannot be told.
    """

    name: str
    unit: str
    read: Callable[[], float]


@dataclass(frozen=True)
class SensorRow:
    """What a sensor showed.

    Attributes:
        name: Its name.
        unit: See `Sensor`.
        least: Of its values; None where it never could be read.
        mean: Likewise.
        most: Likewise.
        problem: Why a value is missing; None if none is.
    """

    name: str
    unit: str
    least: float | None
    mean: float | None
    most: float | None
    problem: str | None


def find_sensors(root: Path = Path("/")) -> tuple[Sensor, ...]:
    """All that this machine has; whether they can be read shows when they are."""
    return (*_rails(root), *_zones(root), *_clocks(root), *_coolers(root))


def total_rail(sensors: Sequence[Sensor]) -> Sensor | None:
    """The one that feeds the whole module, if there is one."""
    return next((it for it in sensors if it.unit == WATTS and it.name in TOTAL), None)


def _rails(root: Path) -> Iterator[Sensor]:
    """Milliwatts are millivolts by milliamperes, channel by channel."""
    for monitor in sorted(root.glob(_MONITORS)):
        for channel in range(1, _CHANNELS + 1):
            label = monitor / f"in{channel}_label"
            volts, amperes = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
            if label.is_file() and volts.is_file() and amperes.is_file():
                yield Sensor(_name(label), WATTS, _product(volts, amperes))


def _zones(root: Path) -> Iterator[Sensor]:
    for zone in sorted(root.glob(_ZONES)):
        yield Sensor(_name(zone / "type"), CELSIUS, _scaled(zone / "temp", 1e-3))


def _clocks(root: Path) -> Iterator[Sensor]:
    for pattern in _GPUS:
        for gpu in sorted(root.glob(pattern)):
            yield Sensor("GPU", MEGAHERTZ, _scaled(gpu / "cur_freq", 1e-6))
    for policy in sorted(root.glob(_CPU)):
        name = f"CPU {policy.name.removeprefix('policy')}"
        yield Sensor(name, MEGAHERTZ, _scaled(policy / "scaling_cur_freq", 1e-3))


def _coolers(root: Path) -> Iterator[Sensor]:
    for cooler in sorted(root.glob(_COOLERS)):
        yield Sensor(_name(cooler / "type"), STATE, _scaled(cooler / "cur_state", 1.0))


def _name(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return file.parent.name


def _scaled(file: Path, factor: float) -> Callable[[], float]:
    return lambda: _number(file) * factor


def _product(volts: Path, amperes: Path) -> Callable[[], float]:
    return lambda: _number(volts) * _number(amperes) * 1e-6


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii").strip())
