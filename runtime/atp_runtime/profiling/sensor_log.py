"""Reads sensors beside the work, and says what they showed and what answers cost."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType

from atp_runtime.profiling.sensors import STATE, Sensor, SensorRow, total_rail

_PAUSE = 0.1  # seconds between two looks; power monitors average over about as much


@dataclass
class _Readings:
    values: list[tuple[float, float]] = field(default_factory=list)
    problem: str | None = None


class SensorLog:
    """Reads sensors in a thread of its own, as long as the block lasts.

    A sensor that cannot be read is asked again; what is missing is told, and nothing else stops.

    Args:
        sensors: What to read.
        pause: Seconds between two looks.
    """

    def __init__(self, sensors: Sequence[Sensor], pause: float = _PAUSE) -> None:
        self._sensors = tuple(sensors)
        self._pause = pause
        self._readings = [_Readings() for _ in sensors]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SensorLog:
        """Begins."""
        if self._sensors:
            self._look()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def rows(self) -> tuple[SensorRow, ...]:
        """What each showed; cooling that never set in is left away."""
        pairs = zip(self._sensors, self._readings, strict=True)
        rows = (_row(sensor, readings) for sensor, readings in pairs)
        return tuple(row for row in rows if row.unit != STATE or row.most)

    def joules(self, spans: Sequence[tuple[float, float]]) -> float | None:
        """What the module took, on average over spans of time.

        Args:
            spans: From and to, in seconds of `time.perf_counter`.

        Returns:
            None where no sensor tells, or it was not read during every span.
        """
        total = total_rail(self._sensors)
        if total is None or not spans:
            return None
        values = self._readings[self._sensors.index(total)].values
        energies = []
        for began, ended in spans:
            watts = [value for moment, value in values if began <= moment <= ended]
            if not watts:
                return None
            energies.append(sum(watts) / len(watts) * (ended - began))
        return sum(energies) / len(energies)

    def _watch(self) -> None:
        while not self._done.wait(self._pause):
            self._look()

    def _look(self) -> None:
        for sensor, readings in zip(self._sensors, self._readings, strict=True):
            try:
                value = sensor.read()
            except (OSError, ValueError) as error:
                readings.problem = str(error)
            else:
                readings.values.append((perf_counter(), value))


def _row(sensor: Sensor, readings: _Readings) -> SensorRow:
    values = [value for _, value in readings.values]
    if not values:
        return SensorRow(sensor.name, sensor.unit, None, None, None, readings.problem)
    mean = sum(values) / len(values)
    return SensorRow(sensor.name, sensor.unit, min(values), mean, max(values), readings.problem)
