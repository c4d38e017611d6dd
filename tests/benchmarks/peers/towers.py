"""The vision tower with its projector, by itself, where a library runs one."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.peers.contest import Case, Contestant
from tests.benchmarks.peers.contestants import DRIVERS, OURS, peer_environment
from tests.benchmarks.peers.environments import interpreter, missing
from tests.benchmarks.peers.lineup import Lineup, Missing, Plan
from tests.benchmarks.peers.made_once import bytes_of
from tests.benchmarks.workbench import checkpoint

from atp_runtime.bundle import Bundle

TOWER = "vision tower"
REFERENCE, _OPENVINO = "Transformers", "openvino-genai"
_SCRIPTS = {
    OURS: "runtime_vision_driver.py",
    REFERENCE: "transformers_vision_driver.py",
    _OPENVINO: "openvino_vision_driver.py",
}
_LACKING = {
    "llama.cpp": "its Python package runs towers of files that its own tools make only",
    "onnxruntime-genai": "has no tower of its own: ONNX Runtime, which runs this one, too",
}


def towers(lineup: Lineup, plan: Plan) -> tuple[list[Contestant], list[Missing]]:
    """Those that can be run, and why others are not there."""
    contestants: list[Contestant] = []
    absent: list[Missing] = []
    for precision in plan.precisions:
        if precision == "int8":
            why = "towers are compared in floating point"
            absent.append(Missing("all", precision, TOWER, why))
            continue
        graphs = Bundle.open(lineup.bundle("dense", precision))
        tokens = graphs.manifest.vision.tokens
        vision = graphs.manifest.stage("vision")
        size = sum(graphs.manifest.files[name].bytes for name in (vision.graph, *vision.data))
        paths = {
            OURS: graphs.root,
            REFERENCE: checkpoint(plan.shape),
            _OPENVINO: graphs.path(vision.graph),
        }
        for name in (OURS, *plan.peers):
            why = missing(name) if name == _OPENVINO else _LACKING.get(name)
            if why is not None:
                absent.append(Missing(name, precision, TOWER, why))
                continue
            # Transformers has tower and decoder in the same files.
            bytes_read = bytes_of(paths[name]) if name == REFERENCE else size
            case = Case(tokens, 0, ())
            contestants.append(_contestant(name, precision, paths[name], bytes_read, plan, case))
    return contestants, absent


def reference_tower(plan: Plan) -> Contestant:
    """Transformers in FP32, without a case: what all must find."""
    return _contestant(REFERENCE, "fp32", checkpoint(plan.shape), 0, plan)


def _contestant(
    name: str, precision: str, artefact: Path, size: int, plan: Plan, *cases: Case
) -> Contestant:
    python = interpreter(name) if name == _OPENVINO else Path(sys.executable)
    command = (str(python), str(DRIVERS / _SCRIPTS[name]))
    variables = peer_environment(ours=name == OURS, threads=plan.threads)
    return Contestant(name, precision, command, variables, str(artefact), size, cases)
