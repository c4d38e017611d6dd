"""Runs a probed graph of a bundle with ONNX Runtime, its weights mapped from the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from atp_runtime.errors import CheckFailedError

Arrays = dict[str, npt.NDArray[Any]]

_ONLY_FATAL = 4
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


class GraphSession:
    """A graph, ready to run.

    Args:
        model: Its weights are in files of `folder`.
        folder: Where the stages of the bundle are.

    Raises:
        CheckFailedError: ONNX Runtime cannot load it.
    """

    def __init__(self, model: ir.Model, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Rearranging weights takes longer than the few runs there are.
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._name = str(model.graph.name)
        proto = ir.serde.serialize_model(model).SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(
                proto, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failed("load", error) from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name; inputs are taken by name and rounded to the graph's dtype.

        Raises:
            CheckFailedError: The graph fails on them.
        """
        feeds = {
            node.name: np.ascontiguousarray(inputs[node.name], dtype=_DTYPES[node.type])
            for node in self._session.get_inputs()
        }
        names = [node.name for node in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failed("run", error) from error

    def _failed(self, verb: str, error: Exception) -> CheckFailedError:
        return CheckFailedError(
            f"stage {self._name}: {str(error).strip().splitlines()[0]}",
            why=f"ONNX Runtime cannot {verb} it, so it cannot be compared.",
            fix="export the bundle again; update onnxruntime if it lacks an operator.",
        )
