"""The exceptions every command of this project may end with.

Three kinds, one per documented exit code. A message always has three parts: what is
wrong, why it matters, what to do. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations


class AtpError(Exception):
    """A failure the user can act on.

    Args:
        what: What is wrong, with the name of the file, option or value.
        why: Why that stops the work.
        fix: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        """The three parts, one to a line."""
        return f"{self.what}\n  why: {self.why}\n  fix: {self.fix}"


class CheckFailedError(AtpError):
    """A check was made and its verdict is no: parity, hashes, accuracy, budget (exit code 1)."""

    exit_code = 1


class InputError(AtpError):
    """An argument, checkpoint, bundle, image or prompt cannot be used (exit code 2)."""

    exit_code = 2


class MachineError(AtpError):
    """The machine lacks something: a package, memory, disk space, a GPU (exit code 3)."""

    exit_code = 3
