"""Why an engine could not be built: what TensorRT's parser and builder say, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atp_runtime.errors import InputError, MachineError

_NO_MEMORY = re.compile(
    r"out ?of ?memory|insufficient memory|bad_?alloc|memory ?allocation|failed to allocate"
    r"|within workspace limit",
    re.IGNORECASE,
)
_REQUESTED = re.compile(r"requested size was (\d+) bytes", re.IGNORECASE)
_LIMITED = re.compile("within workspace limit", re.IGNORECASE)
_SHOWN = 3  # reasons; the first ones are the cause, the rest follow from them


@dataclass(frozen=True)
class Problem:
    """One thing that TensorRT complained of.

    Attributes:
        reason: In TensorRT's words.
        code: Its name for the kind of error.
        node: Of the graph, if it is about one.
        operator: The node's.
    """

    reason: str
    code: str = ""
    node: str = ""
    operator: str = ""

    def __str__(self) -> str:
        """The reason, after the node it is about."""
        place = f"{self.node} ({self.operator})" if self.operator else self.node
        return f"{place}: {self.reason}" if place else self.reason

    @property
    def is_memory(self) -> bool:
        """Whether memory ran out."""
        return self.code == "FAILED_ALLOCATION" or bool(_NO_MEMORY.search(self.reason))


class GraphRefusedError(InputError):
    """TensorRT's parser does not take a stage's graph.

    Attributes:
        stage: The stage's name.
        problems: What the parser said.
    """

    def __init__(self, stage: str, problems: Sequence[Problem]) -> None:
        self.stage = stage
        self.problems = tuple(problems)
        super().__init__(
            f"{stage}: TensorRT does not take its graph",
            why=told(self.problems),
            fix="try the other --dialect, or update TensorRT; the words are those of its parser.",
        )


class BuildFailedError(MachineError):
    """TensorRT took a stage's graph and built no engine from it.

    Args:
        stage: The stage's name.
        problems: What the builder said.
        workspace_bytes: The limit it was given, if any.

    Attributes:
        stage: The stage's name.
        problems: What the builder said.
    """

    def __init__(
        self, stage: str, problems: Sequence[Problem], workspace_bytes: int | None = None
    ) -> None:
        self.stage = stage
        self.problems = tuple(problems)
        what, fix = _diagnosis(self.problems, workspace_bytes)
        super().__init__(f"{stage}: {what}", why=told(self.problems), fix=fix)


def parser_problems(parser: Any) -> tuple[Problem, ...]:
    """The errors of a `trt.OnnxParser`."""
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    return tuple(
        Problem(
            reason=_tidy(error.desc()),
            code=error.code().name,
            node=error.node_name(),
            operator=error.node_operator(),
        )
        for error in errors
    )


def error_recorder(trt: Any) -> Any:
    """A `trt.IErrorRecorder` with a list `problems`."""

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.problems: list[Problem] = []

        def report_error(self, code: Any, desc: str) -> bool:
            self.problems.append(Problem(_tidy(desc), code.name))
            return False

        def num_errors(self) -> int:
            return len(self.problems)

        def get_error_desc(self, index: int) -> str:
            return self.problems[index].reason

        def get_error_code(self, index: int) -> Any:
            return getattr(trt.ErrorCodeTRT, self.problems[index].code)

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.problems.clear()

    return Recorder()


def _diagnosis(problems: Sequence[Problem], workspace_bytes: int | None) -> tuple[str, str]:
    """What failed in a build, and what to do about it."""
    limited = any(_LIMITED.search(problem.reason) for problem in problems)
    requests = [_REQUESTED.search(problem.reason) for problem in problems]
    requested = max((int(request[1]) for request in requests if request), default=0)
    if workspace_bytes is not None and (limited or requested > workspace_bytes):
        enough = f" to {(requested >> 20) + 1} or more" if requested else ""
        what = f"--workspace {workspace_bytes >> 20} does not suffice for its engine"
        fix = (
            f"raise it{enough}, or lower --max-tokens: scratch memory grows with the square of "
            "the longest sequence."
        )
    elif any(problem.is_memory for problem in problems):
        what = "out of memory while its engine was built"
        fix = (
            "close other programs or add swap; lower --max-tokens, --workspace or "
            "--optimisation-level; or export smaller segments with atp-export "
            "--max-segment-bytes. The engines of other stages are kept."
        )
    else:
        what = "TensorRT built no engine"
        fix = "try the other --dialect or --optimisation-level; the words are the builder's."
    return what, fix


def told(problems: Sequence[Problem]) -> str:
    """The first of TensorRT's reasons, as one text."""
    if not problems:
        return "TensorRT gave no reason."
    further = len(problems) - _SHOWN
    reasons = "; ".join(str(problem) for problem in problems[:_SHOWN])
    return f"{reasons}; and {further} more." if further > 0 else f"{reasons.rstrip('.')}."


def _tidy(text: str) -> str:
    return " ".join(text.split())
