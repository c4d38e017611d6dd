"""Ctrl-C ends a run after the step it is in, with a checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from atp_models.training.progress import Progress


class StopOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Asks the trainer to save and stop; a second Ctrl-C interrupts at once.

    Args:
        progress: Told that the run is stopping.

    Attributes:
        asked: Whether Ctrl-C was pressed.
    """

    def __init__(self, progress: Progress) -> None:
        self.asked = False
        self._progress = progress
        self._previous: Any = None
        self._process = os.getpid()

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002 - the signature is Transformers'
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """Looks whether any process was asked to stop."""
        if self._anywhere(args):
            control.should_save = True
            control.should_training_stop = True
        return control

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        # A terminal interrupts the processes that read data, too, which inherit this.
        if os.getpid() != self._process:
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._progress.note("stopping after this step; press Ctrl-C again to stop at once")

    def _anywhere(self, args: TrainingArguments) -> bool:
        if args.world_size > 1:
            flag = torch.tensor(float(self.asked), device=args.device)
            torch.distributed.all_reduce(flag)
            self.asked = bool(flag > 0)
        return self.asked
