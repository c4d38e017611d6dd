"""Watches what enters the linear layers of a bundle while it answers.

The samples run through the device runtime, so what is seen is what is there after pruning.
Everything is reduced inside the graph, but for some tokens that are handed out as they are: what
a run takes on top of the model does not grow with its layers' width times the prompt's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from atp_calibration.quantisation.layer_input import LayerInput, SeenTokens, capacity_for
from atp_calibration.quantisation.linear_layers import linear_layers
from atp_calibration.quantisation.watched_graph import DRAW, Watched, watch_inputs
from atp_runtime.backends.base import DeviceArray, LoadedStage
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.backends.onnxruntime_session import session_options
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Stage

_DRAWN = 128

Ranges = dict[str, float]
"""The largest magnitude that entered, by the names of linear layers."""
Seen = dict[str, dict[str, LayerInput]]
"""What entered, by stage and by the names of the first layers that read it."""


class RangeBackend(OnnxRuntimeBackend):
    """ONNX Runtime, watching what enters the linear layers of every stage.

    Args:
        threads: As `OnnxRuntimeBackend`.
        parts: Which linear layers, see `linear_layers`.
        seed: Of the tokens that are remembered.

    Attributes:
        seen: What is added to. It may be replaced between two prompts.
        remembers: Whether tokens are remembered as they were.
        runs: Of stages, so far. With the same seed and number the same tokens are drawn.
    """

    def __init__(
        self, *, threads: int | None = None, parts: frozenset[str] | None = None, seed: int = 0
    ) -> None:
        super().__init__(threads=threads)
        self.seen: Seen = {}
        self.remembers = True
        self.runs = 0
        self._parts = parts
        self._seed = seed
        self._layers: dict[str, Mapping[str, str]] = {}
        self._channels: dict[str, int] = {}

    @property
    def ranges(self) -> dict[str, Ranges]:
        """The largest magnitudes, by stage."""
        return {
            stage: {
                layer: self.seen[stage][first].maximum
                for layer, first in layers.items()
                if first in self.seen[stage]
            }
            for stage, layers in self._layers.items()
            if stage in self.seen
        }

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Loads a stage; those without linear layers run as they always do."""
        path = bundle.path(stage.graph)
        model = ir.load(path)
        layers = list(linear_layers(model, self._parts))
        if not layers:
            return super().load(bundle, stage)
        watched = watch_inputs(model, layers)
        inputs = {layer.activation: layer.channels for layer in layers}
        self._channels[stage.name] = sum(inputs.values())
        self._layers[stage.name] = {
            layer: entry.first for entry in watched for layer in entry.layers
        }
        options = session_options(self._library, self._threads)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        graph = ir.serde.serialize_model(model).SerializeToString()
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return _WatchedStage(session, self, watched, stage.name)

    @property
    def capacity(self) -> int:
        """Tokens of an input to remember, now that all stages are loaded."""
        return capacity_for(sum(self._channels.values())) if self.remembers else 0

    def draws(self) -> np.random.Generator:
        """What the next run of a stage draws with."""
        self.runs += 1
        return np.random.default_rng([self._seed, self.runs])


class _WatchedStage(LoadedStage):
    def __init__(
        self, session: Any, backend: RangeBackend, watched: tuple[Watched, ...], stage: str
    ) -> None:
        self._session = session
        self._backend = backend
        self._watched = watched
        self._stage = stage
        self._names = [node.name for node in session.get_outputs()]

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        backend = self._backend
        backend.stage_started()
        generator = backend.draws()
        feeds = {name: np.array(backend.download(array)) for name, array in inputs.items()}
        tokens = len(feeds["keep_indices"]) if "keep_indices" in feeds else _DRAWN
        feeds[DRAW] = _evenly(min(tokens, _DRAWN), generator)
        found = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        for name, array in outputs.items():
            backend.write(array, found[name])
        seen = backend.seen.setdefault(self._stage, {})
        for entry in self._watched:
            shown = _shown(entry, found)
            if entry.first not in seen:
                seen[entry.first] = LayerInput(len(shown.largest), backend.capacity)
            seen[entry.first].add(shown, generator)

    def close(self) -> None:
        self._session = None


def _evenly(count: int, generator: np.random.Generator) -> np.ndarray:
    """Places in 0 .. 1, one in each of `count` equal parts."""
    places = (np.arange(count) + generator.random()) / count
    return np.minimum(places, np.nextafter(1, 0)).astype(np.float32)


def _shown(entry: Watched, found: Mapping[str, np.ndarray]) -> SeenTokens:
    largest, mean = found[entry.largest], found[entry.mean]
    # A maximum may pass over NaN; a mean does not.
    if not (np.isfinite(mean).all() and np.isfinite(largest).all()):
        raise CheckFailedError(
            f"{entry.first}: NaN or infinity enters it",
            why="no range can be learned from that, and the answer is of no use either.",
            fix="run atp-export verify on the bundle; in fp16, export with --precision fp32.",
        )
    rows, extreme = found[entry.rows], found[entry.extreme]
    return SeenTokens(int(found[entry.count]), largest, mean, rows, extreme)
