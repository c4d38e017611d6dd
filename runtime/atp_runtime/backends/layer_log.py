"""What the layers of TensorRT engines take, run by run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from atp_runtime.backends.engine_context import EngineContext
from atp_runtime.backends.engine_library import LayerTime

LayerRun: TypeAlias = tuple[LayerTime, ...]
"""The layers of one run of an engine, in the order they ran."""


@dataclass(frozen=True)
class EngineLayers:
    """An engine with one of its optimisation profiles.

    Attributes:
        stage: Whose engine.
        profile: The profile's name.
        description: Of the layers in the first run: JSON of TensorRT's engine inspector.
        runs: In the order they were made.
    """

    stage: str
    profile: str
    description: str
    runs: list[LayerRun] = field(default_factory=list)


class LayerLog:
    """Runs engines and keeps what their layers took."""

    def __init__(self) -> None:
        self._engines: dict[tuple[str, str], EngineLayers] = {}

    def run(self, stage: str, profile: str, context: EngineContext) -> None:
        """Runs an engine whose context is prepared for it.

        Raises:
            EngineError: It cannot be run.
        """
        layers = context.run_timed()
        engine = self._engines.get((stage, profile))
        if engine is None:
            engine = EngineLayers(stage, profile, context.describe())
            self._engines[stage, profile] = engine
        engine.runs.append(layers)

    def forget_runs(self) -> None:
        """Forgets the runs so far, such as those to warm up."""
        for engine in self._engines.values():
            engine.runs.clear()

    @property
    def engines(self) -> tuple[EngineLayers, ...]:
        """All that ran, in the order of their first runs."""
        return tuple(self._engines.values())
