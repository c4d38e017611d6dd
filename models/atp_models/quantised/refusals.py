"""How a quantised checkpoint that cannot be read is refused."""

from __future__ import annotations

from atp_runtime.errors import InputError

_INSTEAD = "export the checkpoint that it was made of, and quantise the bundle with atp-calibrate"


def unsupported(where: object, what: str, supported: str) -> InputError:
    """An error to be raised about a kind of quantisation: named in `what`, found in `where`."""
    return InputError(
        f"{where}: quantisation by {what} is not supported",
        why=f"supported: {supported}",
        fix=_INSTEAD,
    )


def misshapen(where: object, what: str, why: str) -> InputError:
    """An error to be raised about a quantised layer whose tensors are not as documented."""
    return InputError(
        f"{where}: {what}",
        why=why,
        fix=f"fetch the checkpoint again with its config.json; or {_INSTEAD}",
    )
