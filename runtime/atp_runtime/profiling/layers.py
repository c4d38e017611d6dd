"""Times the layers of a bundle's TensorRT engines while it answers.

In a session of its own, behind the measuring of answers: with a profiler TensorRT waits for the end
of every run, and nothing is recorded as a CUDA graph.
"""

from __future__ import annotations

from pathlib import Path

from atp_runtime.backends import open_layer_timing
from atp_runtime.backends.layer_log import EngineLayers, LayerLog
from atp_runtime.bundle import Bundle
from atp_runtime.profiling.timed_turn import Question, TurnTimer
from atp_runtime.session import Session

ANSWERS = 5


def measure_layers(path: Path, question: Question, new_tokens: int) -> tuple[EngineLayers, ...]:
    """What layers take in `ANSWERS` answers, pruned as the bundle says, after one to warm up.

    Args:
        path: The bundle's directory.
        question: What is asked.
        new_tokens: Of each answer.

    Raises:
        InputError: The bundle, its engines or the question cannot be used.
        MachineError: Memory does not suffice, or TensorRT or the GPU is missing.
    """
    log = LayerLog()
    with Session(Bundle.open(path), open_layer_timing(log)) as session:
        timer = TurnTimer(session.model, new_tokens)
        timer.run(question, session.model.select)
        log.forget_runs()
        for _ in range(ANSWERS):
            timer.run(question, session.model.select)
    return log.engines
