"""Makes the bundles that are compared, by `atp-export`, which lives where PyTorch does.

The runtime imports no other room, so the exporter runs as the command it is.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from atp_runtime.errors import AtpError, CheckFailedError, InputError, MachineError
from atp_runtime.policies.entrant import Entrant

_MODULE = "atp_export.cli"
_INTERRUPTED = (-2, 130)
_ERRORS: dict[int, type[AtpError]] = {1: CheckFailedError, 2: InputError, 3: MachineError}


def export_entrant(
    checkpoint: Path, bundle: Path, entrant: Entrant, precision: str, *, quiet: bool
) -> None:
    """Exports a checkpoint with a policy, unless that very bundle is there.

    Args:
        checkpoint: A Hugging Face LLaVA directory.
        bundle: The directory to make.
        entrant: The policy.
        precision: "fp32" or "fp16".
        quiet: Whether the exporter shows no progress.

    Raises:
        InputError: The exporter refuses checkpoint or policy; it says why on standard error.
        CheckFailedError: The bundle does not compute what the checkpoint does.
        MachineError: The exporter is not installed here, or memory or disk do not suffice.
    """
    if find_spec(_MODULE.partition(".")[0]) is None:
        raise MachineError(
            "atp-export is not installed",
            why="--policies exports the checkpoint once per policy.",
            fix="run it where atp-llava[export] is installed; on a device, compare bundles: "
            "atp-eval BUNDLE DATA for each, then atp-eval compare RUN RUN.",
        )
    words = [str(checkpoint), str(bundle), "--precision", precision, *entrant.words()]
    # Its progress is on standard error; what it prints at the end is not this command's result.
    command = [sys.executable, "-m", _MODULE, *words, *(["--quiet"] if quiet else [])]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # noqa: S603
    if done.returncode in _INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        kind = _ERRORS.get(done.returncode, MachineError)
        raise kind(
            f"{entrant}: atp-export failed with exit code {done.returncode}",
            why="its message stands above.",
            fix=f"correct that; alone it is: atp-export {' '.join(words)}",
        )
