"""What the command line says about a budget.

Nothing heavy is imported, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_calibration.given_file import hash_of
from atp_runtime.errors import InputError

# As the kinds, statistics and methods of `target` and `search`, whose imports take NumPy's time.
_STATISTICS = ("mean", "p95")
_METHODS = ("greedy", "sigmoid")

DIVERGENCE = "divergence"
"""Kind of a budget that is no cost: how far the first answer token's distribution may move."""
_UNREADABLE = "the latency table cannot be read."
_FIX = "check the path; atp-profile writes such tables."


@dataclass(frozen=True)
class BudgetOptions:
    """What to fit pruning to, and how.

    Attributes:
        kind: See `atp_calibration.budget.target.Target`; or `DIVERGENCE`, in nats.
        value: Likewise.
        statistic: Likewise.
        device: Whose times are predicted; None for none.
        table: A measured table instead.
        search: How rates are searched for; None fits what the bundle has.
        trials: Of a search.
        curve: Whether accuracy is measured at several budgets.
    """

    kind: str
    value: float
    statistic: str = "mean"
    device: str | None = None
    table: Path | None = None
    search: str | None = None
    trials: int = 40
    curve: bool = True

    def request(self) -> Mapping[str, Any]:
        """All that decides what comes out, as JSON values.

        Raises:
            InputError: The table cannot be read.
        """
        fields = {name: value for name, value in vars(self).items() if name != "table"}
        given = self.table
        content = None if given is None else hash_of(given, why=_UNREADABLE, fix=_FIX)
        return {**fields, "table": content}


def add_budget_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `budget_options` reads."""
    group = parser.add_argument_group("budget")
    target = group.add_mutually_exclusive_group()
    target.add_argument(
        "--target-tokens",
        type=float,
        metavar="N",
        help="visual tokens of an image that are to be left, averaged over all layers",
    )
    target.add_argument(
        "--target-speedup",
        type=float,
        metavar="X",
        help="how many times faster than unpruned the decoder's prefill is to be",
    )
    target.add_argument(
        "--target-ttft",
        metavar="400ms",
        help="when the first token is to come, from the image's pixels on; needs a device's times",
    )
    target.add_argument(
        "--target-divergence",
        type=float,
        metavar="NATS",
        help="let all visual tokens leave at the first pruning point where the first answer "
        "token's distribution stays that near (VTW; its paper takes 0.003)",
    )
    group.add_argument(
        "--budget-statistic",
        choices=_STATISTICS,
        default=_STATISTICS[0],
        help="what is to meet it: the samples' average (default) or their 95th percentile",
    )
    times = group.add_mutually_exclusive_group()
    times.add_argument("--device", metavar="NAME", help="predict its times, such as orin-nano-8gb")
    times.add_argument(
        "--latency-table", type=Path, metavar="FILE", help="take what atp-profile measured instead"
    )
    group.add_argument(
        "--search",
        choices=_METHODS,
        help="make the rule top_k and look for the rates of its points: one after the other, or "
        "by a curve of two parameters",
    )
    group.add_argument(
        "--trials", type=int, default=40, metavar="N", help="of the search (default: %(default)s)"
    )
    group.add_argument(
        "--no-curve",
        action="store_true",
        help="do not answer the samples at several budgets to draw accuracy against budget",
    )


def budget_options(options: argparse.Namespace) -> BudgetOptions | None:
    """What was asked for; None if no target was given.

    Raises:
        InputError: An option needs another one, or a value makes no sense.
    """
    found = _target(options)
    if found is None:
        given = {
            "--device": options.device,
            "--latency-table": options.latency_table,
            "--search": options.search,
        }
        for name, value in given.items():
            if value is not None:
                raise InputError(
                    f"{name} without a target",
                    why="it serves to meet a budget.",
                    fix="add --target-tokens, --target-speedup or --target-ttft.",
                )
        return None
    if found[0] == DIVERGENCE:
        _check_divergence(found[1], options.search)
    if options.trials < 1:
        raise InputError(f"--trials {options.trials}", why="it must be 1 or more.", fix="raise it.")
    return BudgetOptions(
        *found,
        statistic=options.budget_statistic,
        device=options.device,
        table=options.latency_table,
        search=options.search,
        trials=options.trials,
        curve=not options.no_curve,
    )


def _check_divergence(nats: float, search: str | None) -> None:
    if search is not None:
        raise InputError(
            f"--search {search} with --target-divergence",
            why="that looks for a layer and not for rates.",
            fix="leave one of them away.",
        )
    if not 0 <= nats < float("inf"):
        raise InputError(
            f"--target-divergence {nats:g}",
            why="a divergence is a number from 0 on.",
            fix="take 0.003, as the paper does.",
        )


def _target(options: argparse.Namespace) -> tuple[str, float] | None:
    if options.target_divergence is not None:
        return DIVERGENCE, options.target_divergence
    if options.target_tokens is not None:
        return "tokens", options.target_tokens
    if options.target_speedup is not None:
        return "speedup", options.target_speedup
    if options.target_ttft is None:
        return None
    from atp_runtime.latency.duration import parse_duration  # noqa: PLC0415 - see above

    if options.device is None and options.latency_table is None:
        raise InputError(
            "--target-ttft without a device",
            why="nothing says how long a token takes.",
            fix="name it, as in --device orin-nano-8gb, or give --latency-table FILE.",
        )
    return "first_token", parse_duration(options.target_ttft, "--target-ttft")
