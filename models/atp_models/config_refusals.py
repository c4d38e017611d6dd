"""How a config.json that cannot be used is refused."""

from __future__ import annotations

from transformers.activations import ACT2FN

from atp_models.checkpoint import Checkpoint
from atp_runtime.errors import InputError


def unusable(checkpoint: Checkpoint, what: str, why: str, fix: str = "") -> InputError:
    """An error about `config.json`, to be raised; `fix` defaults to correcting that file."""
    return InputError(
        f"{checkpoint.path / 'config.json'}: {what}",
        why=why,
        fix=fix or "correct config.json, or fetch it again from where the weights came from",
    )


def unsupported(checkpoint: Checkpoint, what: str, supported: str) -> InputError:
    """An error about a feature, to be raised: named in `what`, beside what is supported."""
    return unusable(
        checkpoint,
        f"{what} is not supported",
        f"supported: {supported}",
        "export a checkpoint of a supported architecture",
    )


def check_activation(checkpoint: Checkpoint, name: str, where: str) -> None:
    """Refuses an activation that Transformers does not know by that name."""
    if name not in ACT2FN:
        raise unsupported(checkpoint, f"{where} {name!r}", ", ".join(sorted(ACT2FN)))
