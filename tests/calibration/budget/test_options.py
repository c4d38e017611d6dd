from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from atp_calibration.budget.options import BudgetOptions, add_budget_options, budget_options
from atp_calibration.budget.search import METHODS
from atp_calibration.budget.target import FIRST_TOKEN, MEAN, P95, SPEEDUP, TOKENS
from atp_runtime.errors import InputError


def read(*words: str) -> BudgetOptions | None:
    parser = argparse.ArgumentParser()
    add_budget_options(parser)
    return budget_options(parser.parse_args(words))


def test_without_a_target_there_is_no_budget() -> None:
    assert read() is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--target-tokens", "144"), BudgetOptions(TOKENS, 144.0)),
        (
            ("--target-speedup", "2", "--budget-statistic", "p95", "--no-curve"),
            BudgetOptions(SPEEDUP, 2.0, P95, curve=False),
        ),
        (
            ("--target-ttft", "400ms", "--device", "orin-nano-8gb"),
            BudgetOptions(FIRST_TOKEN, 0.4, MEAN, "orin-nano-8gb"),
        ),
        (
            ("--target-tokens", "99", "--search", METHODS[0], "--trials", "7"),
            BudgetOptions(TOKENS, 99.0, search=METHODS[0], trials=7),
        ),
    ],
)
def test_options_say_what_to_fit_to(words: tuple[str, ...], expected: BudgetOptions) -> None:
    assert read(*words) == expected


@pytest.mark.parametrize(
    "words",
    [
        ("--target-ttft", "400ms"),
        ("--target-ttft", "400", "--device", "orin-nano-8gb"),
        ("--device", "orin-nano-8gb"),
        ("--search", "greedy"),
        ("--target-tokens", "9", "--trials", "0"),
    ],
)
def test_half_of_what_is_needed_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        read(*words)


def test_another_table_is_another_request(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    requests = []
    for text in ("a", "b"):
        table.write_text(text)
        requests.append(BudgetOptions(TOKENS, 9.0, table=table).request())
    assert requests[0] != requests[1]
    assert str(tmp_path) not in str(requests)
    with pytest.raises(InputError, match="missing"):
        BudgetOptions(TOKENS, 9.0, table=tmp_path / "missing").request()
