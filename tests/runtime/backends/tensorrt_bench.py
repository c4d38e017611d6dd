"""One segment of the hand-made bundle, loaded by the TensorRT backend on host memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import HostEngine, HostLibrary

from atp_runtime.backends.base import DeviceArray, LoadedStage
from atp_runtime.backends.tensorrt import TensorRtBackend
from atp_runtime.bundle import Bundle

SEGMENT = "segment_1"  # of one layer, before a pruning point
HIDDEN, KV = 8, (2, 4)
Arrays = dict[str, DeviceArray]


@dataclass
class Bench:
    """A loaded segment with inputs and outputs to run it on."""

    bundle: Bundle
    library: HostLibrary
    device: HostDevice
    backend: TensorRtBackend
    stage: LoadedStage

    @classmethod
    def of(cls, root: Path) -> "Bench":
        library, device = HostLibrary(), HostDevice()
        backend, bundle = TensorRtBackend(device, library), Bundle.open(root)
        stage = backend.load(bundle, bundle.manifest.stage(SEGMENT))
        return cls(bundle, library, device, backend, stage)

    @property
    def engine(self) -> HostEngine:
        return self.library.engines[SEGMENT]

    def inputs(self, tokens: int, past: int) -> Arrays:
        random = np.random.default_rng(tokens)
        upload = self.backend.upload
        keys = [random.normal(size=(1, past, *KV)).astype(np.float32) for _ in range(2)]
        return {
            "hidden_states": upload(random.normal(size=(1, tokens, HIDDEN)).astype(np.float32)),
            "keep_indices": upload(np.arange(tokens)),
            "position_ids": upload(past + np.arange(tokens)[np.newaxis]),
            "past_length": upload(np.array([past])),
            "past_key_values.2.key": upload(keys[0]),
            "past_key_values.2.value": upload(keys[1]),
            "visual_weights": upload(np.ones(tokens, dtype=np.float32)),
            "text_rows": upload(np.zeros(1, dtype=np.int64)),
            "text_weights": upload(np.ones(1, dtype=np.float32)),
        }

    def outputs(self, tokens: int, offset: int = 0) -> Arrays:
        shapes = {
            "hidden_states_out": (1, tokens, HIDDEN),
            "present.2.key": (1, tokens, *KV),
            "present.2.value": (1, tokens, *KV),
            "scores.self": (tokens,),
            "scores.cross": (tokens,),
        }
        blocks = {name: self.backend.allocate(1 << 14) for name in shapes}
        return {
            name: blocks[name].array(shape, "float32", offset) for name, shape in shapes.items()
        }

    def told(self, inputs: Arrays, outputs: Arrays) -> dict[str, int]:
        """What the engine is told for one more run."""
        before = self.engine.told.copy()
        self.stage.run(inputs, outputs)
        return dict(self.engine.told - before)
