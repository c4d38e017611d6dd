import json

import pytest
from tests.benchmarks.peers.contest import Answer, Case, Contestant, Timed
from tests.benchmarks.peers.contestants import OURS
from tests.benchmarks.peers.lineup import PRUNED, Missing
from tests.benchmarks.peers.report import cells, document, lines, markdown, sections, versions

ABOUT = {"command": "just bench peers --rounds 2", "machine": "a machine", "threads": 2}
WHOLE = Case(8, 4, tuple(range(12)))
HALF = Case(4, 4, tuple(range(8)))
PRUNED_HALF = Case(4, 4, tuple(range(12)), keep=(6, 2))


def contestant(name: str, precision: str, *cases: Case) -> Contestant:
    return Contestant(name, precision, (), {}, "model", 2**30, cases)


def answer(*firsts: float, later: float = 0.1, check: tuple[int, ...] = (1, 2, 3)) -> Answer:
    timed = tuple(Timed(first, (later, later, 9.0), 2**31) for first in firsts)
    return Answer(2.0, {"package": "1.0"}, check, timed)


@pytest.fixture
def answers() -> dict[Contestant, list[Answer]]:
    return {
        contestant(OURS, "fp32", HALF, WHOLE): [answer(1.0, 2.0), answer(2.0, 4.0)],
        contestant(PRUNED, "fp32", PRUNED_HALF): [answer(1.1), answer(2.2)],
        contestant("other", "fp32", HALF, WHOLE): [
            answer(2.0, 6.0, later=0.2),
            answer(6.0, 12.0, later=0.2, check=(1, 9, 3)),
        ],
        contestant("other", "int8", HALF): [answer(0.5), answer(0.5)],
    }


def test_every_contestant_has_a_line_at_each_of_its_prompts(answers) -> None:
    found = [(it.visual, it.name, it.precision, it.pruned_from) for it in lines(answers, (1, 2, 3))]

    assert found == [
        (8, OURS, "fp32", None),
        (8, "other", "fp32", None),
        (4, OURS, "fp32", None),
        (4, PRUNED, "fp32", 8),
        (4, "other", "fp32", None),
        (4, "other", "int8", None),
    ]


def test_ratios_are_of_the_same_round_and_precision(answers) -> None:
    found = {(it.visual, it.name, it.precision): it for it in lines(answers, (1, 2, 3))}

    # Rounds of 2 / 1 and 6 / 2, not 4 / 1.5.
    assert found[4, "other", "fp32"].first_token_to_ours == pytest.approx(2.5)
    assert found[4, "other", "fp32"].token_to_ours == pytest.approx(2.0)
    assert found[4, PRUNED, "fp32"].first_token_to_ours == pytest.approx(1.1)
    assert found[4, "other", "int8"].first_token_to_ours is None


def test_a_slow_token_among_many_does_not_count(answers) -> None:
    assert {it.token_seconds for it in lines(answers, ())} == {0.1, 0.2}


def test_agreement_is_that_of_the_worst_round(answers) -> None:
    found = {(it.visual, it.name): it for it in lines(answers, (1, 2, 3))}

    assert (found[8, OURS].agrees, found[8, "other"].agrees) == (3, 1)
    assert cells(found[8, "other"])[-1] == "1/3"


def test_agreement_is_unknown_without_a_reference(answers) -> None:
    assert {cells(it)[-1] for it in lines(answers, ())} == {"?"}


def test_markdown_names_the_command_and_what_was_not_measured(answers) -> None:
    missing = [Missing("third", "fp16", "decoder", "not installed: a | b")]

    text = markdown(lines(answers, (1, 2, 3)), missing, ABOUT, {"other: package": "1.0"})

    assert "`just bench peers --rounds 2`" in text
    assert "other: package 1.0" in text
    assert "| third | fp16 | decoder | not installed: a / b |" in text
    assert f"| {PRUNED} from 8 | fp32 | 2.0 | 1.65 | 1.10 |" in text
    for _, rows in sections(lines(answers, (1, 2, 3))):
        assert all(f"| {' | '.join(row)} |" in text for row in rows)


def test_versions_name_whose_they_are_where_they_differ(answers) -> None:
    other = Answer(2.0, {"package": "2.0", "single": "3"}, (1, 2, 3), ())
    answers[contestant("third", "fp32")] = [other]

    assert versions(answers) == {
        f"package of {OURS}": "1.0",
        f"package of {PRUNED}": "1.0",
        "package of other": "1.0",
        "package of third": "2.0",
        "single": "3",
    }


def test_document_holds_every_round_and_is_json(answers) -> None:
    missing = [Missing("third", "fp16", "decoder", "not installed")]

    found = json.loads(json.dumps(document(lines(answers, ()), missing, answers, ABOUT)))

    assert found["threads"] == 2
    assert found["versions"] == {"package": "1.0"}
    assert found["missing"][0]["reason"] == "not installed"
    assert [len(it["answers"]) for it in found["rounds"]] == [2, 2, 2, 2]
    assert found["rounds"][2]["answers"][1]["timed"][0]["first_token"] == 6.0
