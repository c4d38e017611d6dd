"""Named ranges around the parts of an answer, for timelines such as those of Nsight Systems.

Parts are wrapped where a loaded model has them, and only when that is asked for: otherwise nothing
is spent on it, and no part knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, wraps
from typing import Any, TypeAlias

from atp_runtime.conversation import Model
from atp_runtime.errors import MachineError
from atp_runtime.sampling import Sampler

DOMAIN = "atp-llava"

Range: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Makes a range of that name, as long as the context lasts. Ranges may lie in one another."""


def open_nvtx() -> Range:
    """Ranges of NVIDIA's tools extension, in the domain `DOMAIN`; only a profiler sees them.

    Raises:
        MachineError: The package `nvtx` is not installed.
    """
    try:
        import nvtx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MachineError(
            f"the Python package nvtx cannot be used: {error}",
            why="--nvtx marks the parts of an answer with it.",
            fix="python -m pip install nvtx, or leave --nvtx away.",
        ) from error

    @cache  # their names are few
    def named(name: str) -> AbstractContextManager[object]:
        made: AbstractContextManager[object] = nvtx.annotate(name, domain=DOMAIN)
        return made

    return named


@contextmanager
def marked_parts(model: Model, make: Range) -> Iterator[None]:
    """Inside the block, what the model's parts do lies in ranges.

    Args:
        model: Of a session.
        make: Makes a range.
    """
    marked: list[tuple[Any, str, Any]] = []

    def mark(owner: Any, method: str, name: str | Callable[..., str]) -> None:
        _replace(owner, method, _inside(make, name, getattr(owner, method)))

    def _replace(owner: Any, method: str, by: Any) -> None:
        marked.append((owner, method, vars(owner).get(method)))
        setattr(owner, method, by)

    def prefill(hidden: Any, chunk: Any, select: Any) -> Any:
        return whole(hidden, chunk, _inside(make, _point, select))

    whole = model.decoder.prefill
    _replace(model.decoder, "prefill", prefill)
    mark(model.writer, "draft", "tokenise")
    mark(model.writer, "ids", "tokenise")
    mark(model.vision, "read", "photo")
    mark(model.vision, "encode", "vision")
    mark(model.memory, "features", "vision")
    mark(model.context, "prefill", "prefill")
    mark(model.context.embedding, "splice", "embed and splice")
    mark(model.context, "feed", "decode step")
    mark(model.decoder, "run_stage", _stage)
    mark(Sampler, "pick", "sample")
    try:
        yield
    finally:
        for owner, method, before in reversed(marked):
            if before is None:
                delattr(owner, method)
            else:
                setattr(owner, method, before)


def _inside(make: Range, name: str | Callable[..., str], work: Callable[..., Any]) -> Any:
    @wraps(work)
    def run(*arguments: Any, **options: Any) -> Any:
        with make(name if isinstance(name, str) else name(*arguments)):
            return work(*arguments, **options)

    return run


def _stage(stage: str, *_: object) -> str:
    return stage


def _point(point: Any, *_: object) -> str:
    return f"select before {point.before_layer}"
