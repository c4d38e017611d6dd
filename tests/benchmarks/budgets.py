"""Whether budgets and deadlines hold on questions that nothing was fitted to, on the demo."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.benchmarks.measure import Row, at_least, at_most
from tests.benchmarks.reproduce.work import BIN, Work
from tests.benchmarks.workbench import WORK

from atp_runtime.deadline import DeadlineSelectors
from atp_runtime.generation import GenerationOptions
from atp_runtime.latency.table import MeasuredLatency, read_table
from atp_runtime.session import Session

TARGETS = (88, 144, 200)
SAMPLES, UNSEEN = 128, 400
SHARES = (0.6, 0.75, 0.9)
"""Deadlines, as shares of the time to the first token without one."""


def budgets(_shape: str, _rounds: int) -> list[Row]:
    """Average tokens of unseen questions, of budgets fitted to others."""
    work = Work(WORK / "demo", UNSEEN)
    bundle, rows = _bundle(work), []
    train, test = work.data("scenes-train"), work.data("scenes-test")
    for target in TARGETS:
        fitted = work.directory / f"bundle-budget-{target}"
        if not fitted.is_dir():
            words = ["--target-tokens", str(target), "--samples", str(SAMPLES), "--no-curve"]
            _call("atp-calibrate", bundle, train, fitted, *words)
        report = work.run(f"budget-{target}", fitted, test)
        found = float(report["tokens"]["mean"]["mean"])
        rows += [
            Row(f"{target} tokens: of {UNSEEN} unseen questions", found, ""),
            at_most(f"{target} tokens: off by", 100 * abs(found / target - 1), 3, "%"),
        ]
    return rows


def deadlines(_shape: str, rounds: int) -> list[Row]:
    """The share of first tokens in time, and their 95th percentile."""
    work = Work(WORK / "demo", UNSEEN)
    bundle, count = _bundle(work), 10 * rounds
    table = work.directory / "latency.json"
    _call("atp-profile", bundle, "--output", table)
    # No photo twice: features of the last ones are remembered.
    questions = _questions(work.data("scenes-test"), (len(SHARES) + 1) * count)
    rows = []
    with Session.open(bundle) as session:
        model = session.model
        plain, latency = model.select, MeasuredLatency(read_table(table, model.manifest))
        usual = float(np.median(_first_tokens(session, questions[:count])))
        rows.append(Row("first token without a deadline, median", 1e3 * usual, "ms"))
        for number, share in enumerate(SHARES, 1):
            seconds = share * usual
            model.select = DeadlineSelectors(plain, model.manifest, latency, seconds)
            asked = questions[number * count : (number + 1) * count]
            found = _first_tokens(session, asked)
            name = f"deadline {1e3 * seconds:.0f} ms ({share:.0%}), {count} questions"
            rows += [
                Row(f"{name}: 95th percentile / deadline", np.percentile(found, 95) / seconds, "x"),
                at_least(f"{name}: within 5 %", 100 * np.mean(found <= 1.05 * seconds), 95, "%"),
            ]
    return rows


def _bundle(work: Work) -> Path:
    return work.bundle("atp", work.checkpoint())


def _questions(data: Path, count: int) -> list[tuple[str, Path]]:
    """Each about another image, so that nothing is remembered of it."""
    records: list[dict[str, Any]] = json.loads(data.read_text(encoding="utf-8"))
    first = {record["image"]: record for record in reversed(records)}
    chosen = list(first.values())[:count]
    return [
        (it["conversations"][0]["value"].replace("<image>", "").strip(), data.parent / it["image"])
        for it in chosen
    ]


def _first_tokens(session: Session, questions: list[tuple[str, Path]]) -> npt.NDArray[np.float64]:
    """Seconds."""
    options = GenerationOptions(max_new_tokens=1)
    answers = (session.ask(text, [image], options) for text, image in questions)
    return np.array([it.statistics.first_token_seconds for it in answers])


def _call(command: str, *words: str | Path) -> None:
    subprocess.run([str(BIN / command), *map(str, words)], check=True, stdout=subprocess.DEVNULL)
