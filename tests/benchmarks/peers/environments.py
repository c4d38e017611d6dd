"""Each peer in a virtual environment of its own, with pinned versions.

    just bench-peers-setup [PEER ...]

They lie in the user's cache, `atp-llava/peers`, or where ATP_BENCH_PEERS says.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_models.demo.parts import default_cache_dir

_PINS = Path(__file__).parent / "requirements"
_STAMP = "installed-requirements"
# Optimum Intel asks for it, text models do without, and beside a torch of another build (CPU, CUDA)
# it keeps Transformers from being imported.
_UNWANTED = {"openvino-genai": ("torchvision",)}
NAMES = tuple(sorted(file.stem for file in _PINS.glob("*.txt")))


def environment(name: str) -> Path:
    """Where a peer's environment is, or would be."""
    base = os.environ.get("ATP_BENCH_PEERS")
    return (Path(base) if base else default_cache_dir() / "peers") / name


def interpreter(name: str) -> Path:
    """A peer's Python."""
    return environment(name) / "bin" / "python"


def missing(name: str) -> str | None:
    """Why a peer cannot be run here; None if it can."""
    setup = f"just bench-peers-setup {name}"
    if not (environment(name) / _STAMP).is_file():
        return f"not installed: {setup}"
    if (environment(name) / _STAMP).read_text(encoding="utf-8") != _pins_hash(name):
        return f"other versions are installed than are pinned: {setup}"
    return None


def install(name: str) -> None:
    """Makes a peer's environment, or brings it to the pinned versions.

    Raises:
        CalledProcessError: A package cannot be had or built; pip has said why.
    """
    python = interpreter(name)
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(environment(name))], check=True)
    pins = str(_PINS / f"{name}.txt")
    command = [str(python), "-m", "pip", "install", "--quiet", "--requirement", pins]
    subprocess.run(command, check=True)
    if name in _UNWANTED:
        command = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *_UNWANTED[name]]
        subprocess.run(command, check=True)
    (environment(name) / _STAMP).write_text(_pins_hash(name), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Installs the named peers, or all; exit code 3 if one could not be."""
    parser = argparse.ArgumentParser(prog="just bench-peers-setup", description=__doc__)
    parser.add_argument(
        "peers", nargs="*", choices=[*NAMES, []], metavar="PEER", help="default: all"
    )
    failed = False
    for name in parser.parse_args(arguments).peers or NAMES:
        if missing(name) is None:
            print(f"{name}: installed in {environment(name)}")
            continue
        print(f"{name}: installing into {environment(name)}", flush=True)
        try:
            install(name)
        except subprocess.CalledProcessError as error:
            failed = True
            print(f"{name}: not installed ({error})", file=sys.stderr)
    return 3 if failed else 0


def _pins_hash(name: str) -> str:
    return hashlib.sha256((_PINS / f"{name}.txt").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
