"""`just bench`: measure, print a table with the promised ratios, write JSON.

Each case runs in a process of its own, so that none inherits another's memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from tests.benchmarks.workbench import OUTPUT, ROOT

from atp_export.versions import package_versions


def main() -> int:
    """Runs the chosen cases; exit code 1 if a promise is not met."""
    if sys.argv[1:2] in (["peers"], ["scaling"]):
        # Reports of their own, with options of their own.
        module = importlib.import_module(f"tests.benchmarks.{sys.argv[1]}.command")
        return int(module.main(sys.argv[2:]))
    from tests.benchmarks.cases import CASES  # noqa: PLC0415 - Transformers is slow to import

    parser = argparse.ArgumentParser(prog="just bench", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument(
        "--shape", help="checkpoint shape: tiny, narrow, wide, 1b or 7b (default: the case's)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    names = options.cases or list(CASES)
    if len(names) > 1 and not options.in_process:
        return max(_run_alone(name, options) for name in names)
    case, shape = CASES[names[0]]
    rows = case(options.shape or shape, options.rounds)
    document = {
        "case": names[0],
        "shape": options.shape or shape,
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": package_versions(),
        "rows": [asdict(row) for row in rows],
    }
    (OUTPUT / f"{names[0]}.json").write_text(json.dumps(document, indent=2) + "\n")
    table = Table(title=f"{names[0]} ({document['shape']}, {document['machine']})", box=None)
    for column in ("measured", "", "promise", ""):
        table.add_column(column, justify="right")
    table.columns[0].header, table.columns[1].header = "case", "measured"
    for row in rows:
        verdict = "" if row.met is None else ("met" if row.met else "NOT MET")
        table.add_row(row.case, f"{row.measured:.3f} {row.unit}", row.bar, verdict)
    Console().print(table)
    return int(any(row.met is False for row in rows))


def _run_alone(name: str, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tests.benchmarks", name, "--rounds", str(options.rounds)]
    if options.shape:
        command += ["--shape", options.shape]
    return subprocess.run(command, check=False, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
