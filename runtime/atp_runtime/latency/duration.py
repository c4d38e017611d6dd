"""Times as people write them: "400ms", "1.5s"."""

from __future__ import annotations

import math
import re

from atp_runtime.errors import InputError

_FORM = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s)\s*")


def parse_duration(text: str, option: str) -> float:
    """The seconds of a time with its unit.

    Args:
        text: Such as "400ms" or "1.5s".
        option: What it was given to, for the message.

    Raises:
        InputError: It has another form, or is not above 0.
    """
    match = _FORM.fullmatch(text)
    seconds = float(match[1]) * (1e-3 if match[2] == "ms" else 1.0) if match else 0.0
    if not match or not seconds > 0 or math.isinf(seconds):
        raise InputError(
            f"{option} {text}",
            why="it must be a time above 0, with its unit.",
            fix=f"write it as in {option} 400ms or {option} 1.5s.",
        )
    return seconds
