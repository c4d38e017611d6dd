"""The on-device runtime: reads a bundle, prunes visual tokens between engine segments, answers.

The public names are loaded when they are first used, so that `import atp_runtime` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atp_runtime.bundle import Bundle
    from atp_runtime.errors import AtpError, CheckFailedError, InputError, MachineError
    from atp_runtime.generation import GenerationOptions
    from atp_runtime.sampling import SamplingOptions
    from atp_runtime.session import Answer, Conversation, Session

_HOMES = {
    "Answer": "session",
    "AtpError": "errors",
    "Bundle": "bundle",
    "CheckFailedError": "errors",
    "Conversation": "session",
    "GenerationOptions": "generation",
    "InputError": "errors",
    "MachineError": "errors",
    "SamplingOptions": "sampling",
    "Session": "session",
}

__all__ = [
    "Answer",
    "AtpError",
    "Bundle",
    "CheckFailedError",
    "Conversation",
    "GenerationOptions",
    "InputError",
    "MachineError",
    "SamplingOptions",
    "Session",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
