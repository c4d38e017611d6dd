"""What a run tells while it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from atp_models.training.progress import Progress


class ProgressLines(TrainerCallback):  # type: ignore[misc]
    """A line per log: losses, kept tokens, accuracy.

    Args:
        progress: Where they go.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began = time.perf_counter()
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes where the run goes on."""
        del args, control
        self._began, self._first_step = time.perf_counter(), state.global_step
        if state.global_step:
            self._progress.note(f"resumed at step {state.global_step} of {state.max_steps}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Tells what was logged."""
        del args, control
        told = dict(logs or {})
        if not state.is_world_process_zero or "train_runtime" in told:
            return
        text = _validation(told) if "eval_loss" in told else _training(told)
        left = self._left(state)
        self._progress.note(f"step {state.global_step}/{state.max_steps}  {text}{left}")

    def _left(self, state: TrainerState) -> str:
        steps = state.global_step - self._first_step
        if steps < 1 or state.global_step >= state.max_steps:
            return ""
        each = (time.perf_counter() - self._began) / steps
        seconds = round(each * (state.max_steps - state.global_step))
        return f"  {seconds // 60} min {seconds % 60:02d} s left"


def _training(told: Mapping[str, float]) -> str:
    parts = [f"loss {told.get('loss', 0):.4f}"]
    if "lm_loss" in told:
        parts.append(f"lm {told['lm_loss']:.4f}")
    parts += _tokens(told, "")
    if "temperature" in told:
        parts.append(f"T {told['temperature']:.1f}")
    return "  ".join(parts)


def _validation(told: Mapping[str, float]) -> str:
    parts = [
        f"validation: answers {told['eval_answer_accuracy']:.1%}",
        f"tokens {told['eval_token_accuracy']:.1%}",
        f"loss {told['eval_loss']:.4f}",
        *_tokens(told, "eval_"),
    ]
    return "  ".join(parts)


def _tokens(told: Mapping[str, float], prefix: str) -> list[str]:
    kept = [value for name, value in told.items() if name.startswith(f"{prefix}kept_")]
    if not kept:
        return []
    points = "/".join(f"{value:.0f}" for value in kept)
    return [f"kept {points}, mean {told[f'{prefix}mean_tokens']:.0f}"]
