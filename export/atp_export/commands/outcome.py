"""Ends a command that made a check: one JSON document, or the failure as an error."""

from __future__ import annotations

from typing import Any

from atp_runtime.cli.command import error_document, print_error, print_json
from atp_runtime.errors import CheckFailedError


def end(failure: CheckFailedError | None, document: dict[str, Any] | None) -> int:
    """Ends the command.

    Args:
        failure: What the check found wrong.
        document: What to print with `--json`, the failure added as `error`; None without.

    Returns:
        The exit code.

    Raises:
        CheckFailedError: `failure`, where there is no document to put it in.
    """
    if document is None:
        if failure:
            raise failure
        return 0
    if failure is None:
        print_json(document)
        return 0
    print_json({**document, "error": error_document(failure)})
    return print_error("atp-export", failure)
