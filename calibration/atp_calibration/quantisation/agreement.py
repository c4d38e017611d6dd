"""How far the stages of a quantised bundle agree with the originals on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.backends.base import Backend, DeviceArray, LoadedStage
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Stage
from atp_runtime.tensor_names import PAST, PRESENT

_OUTPUTS = ("hidden_states_out", "image_features", "patch_features", "logits")


@dataclass
class Agreement:
    """Of the main output of a stage.

    Attributes:
        runs: That were compared.
        cosine: The least of all runs.
        mean_cosine: Over all runs.
        norm_ratio: Quantised to original, the farthest from 1 of all runs.
    """

    runs: int = 0
    cosine: float = 1.0
    mean_cosine: float = 1.0
    norm_ratio: float = 1.0

    def add(self, original: np.ndarray, quantised: np.ndarray) -> None:
        """Takes in a run; both outputs have the same shape."""
        a, b = (it.astype(np.float64).ravel() for it in (original, quantised))
        norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        cosine = float(a @ b) / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])
        ratio = norms[1] / norms[0] if norms[0] else 1.0
        self.runs += 1
        self.cosine = min(self.cosine, cosine)
        self.mean_cosine += (cosine - self.mean_cosine) / self.runs
        if abs(ratio - 1) > abs(self.norm_ratio - 1):
            self.norm_ratio = ratio


class AgreementBackend(OnnxRuntimeBackend):
    """Runs a bundle and, beside each stage that differs, another bundle's on the same inputs.

    The other's past keys and values are its own, from the same inputs of earlier runs.

    Args:
        other: The other bundle.
        threads: As `OnnxRuntimeBackend`.

    Attributes:
        found: How far they agree, by stage.
    """

    def __init__(self, other: Bundle, *, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self.found: dict[str, Agreement] = {}
        self._other = self.fastest_view(other)

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Loads a stage, and the other bundle's if it is another file."""
        loaded = super().load(bundle, stage)
        files, others = bundle.manifest.files, self._other.manifest.files
        if all(files[name] == others[name] for name in (stage.graph, *stage.data)):
            return loaded
        other = super().load(self._other, self._other.manifest.stage(stage.name))
        agreement = self.found.setdefault(stage.name, Agreement())
        return _ComparedStage(self, loaded, other, agreement)


class _ComparedStage(LoadedStage):
    def __init__(
        self, backend: Backend, loaded: LoadedStage, other: LoadedStage, agreement: Agreement
    ) -> None:
        self._backend = backend
        self._loaded = loaded
        self._other = other
        self._agreement = agreement
        self._cached: dict[str, npt.NDArray[Any]] = {}

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        scratch = {
            name: self._backend.allocate(it.nbytes).array(it.shape, it.dtype)
            for name, it in outputs.items()
        }
        self._other.run({**inputs, **self._own_past(inputs)}, scratch)
        self._loaded.run(inputs, outputs)
        self._keep(inputs, scratch)
        name = next(name for name in _OUTPUTS if name in outputs)
        self._agreement.add(
            self._backend.download(outputs[name]), self._backend.download(scratch[name])
        )

    def _own_past(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Past keys and values as the other computed them: its values may have another scale."""
        return {
            name: self._upload(self._cached[name][:, : array.shape[1]], array.dtype)
            for name, array in inputs.items()
            if name in self._cached
        }

    def _keep(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        for name, array in inputs.items():
            if name.startswith(PAST):
                new = self._backend.download(outputs[name.replace(PAST, PRESENT)])
                before = self._cached.get(name, new)[:, : array.shape[1]]
                self._cached[name] = np.concatenate([before, new], axis=1)

    def _upload(self, values: npt.NDArray[Any], dtype: str) -> DeviceArray:
        array = self._backend.allocate(values.nbytes).array(values.shape, dtype)
        self._backend.write(array, values)
        return array

    def close(self) -> None:
        self._loaded.close()
        self._other.close()
