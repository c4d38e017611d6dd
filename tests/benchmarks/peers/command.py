"""`just bench peers`: options, rounds, and what is printed and written."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.benchmarks.peers import report
from tests.benchmarks.peers.contest import Answer, Contestant, DriverError, Task, ask, run_rounds
from tests.benchmarks.peers.contestants import PEERS, PRECISIONS
from tests.benchmarks.peers.lineup import Lineup, Missing, Plan
from tests.benchmarks.peers.towers import TOWER, reference_tower, towers
from tests.benchmarks.workbench import OUTPUT

_CHECK_PROMPT, _CHECK_TOKENS = 48, 16
_WIDTH = 140
_KEPT = "1,0.25,0.0625"


def main(arguments: Sequence[str]) -> int:
    """Compares; exit code 0, whoever is faster."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    OUTPUT.mkdir(exist_ok=True)
    plan = Plan(
        options.shape,
        options.precision,
        options.kept,
        options.text,
        options.threads,
        options.peers,
    )

    def told(words: str) -> None:
        console.print(words, highlight=False, markup=False)

    lineup = Lineup(plan, told)
    decoders, missing = lineup.contestants(), lineup.missing
    prompts = Task(options.threads, options.tokens, lineup.ids(_CHECK_PROMPT), _CHECK_TOKENS)
    contests = [("decoder", decoders, prompts, lineup.reference())]
    if not options.no_tower:
        encoders, absent = towers(lineup, plan)
        missing += absent
        image = Task(options.threads, 1, (), _CHECK_TOKENS)
        contests.append((TOWER, encoders, image, reference_tower(plan)))
    found: list[report.Line] = []
    answers: dict[Contestant, list[Answer]] = {}
    for part, contestants, task, of_reference in contests:
        try:
            reference = ask(of_reference, task).check
        except DriverError as error:
            reference = ()
            what = f"{part}: what all should answer"
            missing.append(Missing(of_reference.name, of_reference.precision, what, str(error)))
        given, failed = run_rounds(contestants, task, options.rounds, told)
        missing += [Missing(it.name, it.precision, part, why) for it, why in failed.items()]
        found += report.lines(given, reference)
        answers |= given
    about = {
        "command": shlex.join(["just", "bench", "peers", *arguments]),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "threads": options.threads,
        "shape": options.shape,
        "new_tokens": options.tokens,
        "rounds_asked": options.rounds,
    }
    document = report.document(found, missing, answers, about)
    (OUTPUT / "peers.json").write_text(json.dumps(document, indent=2) + "\n")
    text = report.markdown(found, missing, about, document["versions"])
    (OUTPUT / "peers.md").write_text(text, encoding="utf-8")
    _print(found, missing, about["machine"])
    return 0


def _print(found: Sequence[report.Line], missing: Sequence[Missing], machine: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for title, rows in report.sections(found):
        table = Table(title=f"{title} ({machine})", box=None)
        for column in report.COLUMNS:
            table.add_column(column, justify="left" if column in report.COLUMNS[:2] else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for it in missing:
        words = f"not measured: {it.name}, {it.precision}, {it.what}: {it.reason}"
        console.print(words, highlight=False, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just bench peers",
        description="Compare this runtime with others: the same decoder, prompts and threads. Each "
        "that is installed (just bench-peers-setup) is asked in every round, in a new process.",
    )
    parser.add_argument(
        "--shape", default="135m", help="demo, tiny, 135m, 1b or 7b (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", type=_precisions, default="fp32", help="some of fp32,fp16,int8"
    )
    parser.add_argument(
        "--kept",
        type=_shares,
        default=_KEPT,
        help="shares of an image's tokens that are left (default: %(default)s)",
    )
    parser.add_argument("--text", type=_counts, default="64", help="text tokens, such as 64,512")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-tower", action="store_true", help="compare decoders only")
    parser.add_argument(
        "--peers",
        type=_peers,
        default=",".join(peer.name for peer in PEERS),
        help="whom to compare with (default: %(default)s)",
    )
    return parser


def _precisions(words: str) -> tuple[str, ...]:
    return _among(words, PRECISIONS)


def _peers(words: str) -> tuple[str, ...]:
    return _among(words, [peer.name for peer in PEERS])


def _among(words: str, known: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(filter(None, words.split(",")))
    for word in chosen:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
    return chosen


def _shares(words: str) -> tuple[float, ...]:
    try:
        shares = tuple(map(float, words.split(",")))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise argparse.ArgumentTypeError("shares are above 0 and at most 1, such as 1,0.25")
    return shares


def _counts(words: str) -> tuple[int, ...]:
    return tuple(map(int, words.split(",")))


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
