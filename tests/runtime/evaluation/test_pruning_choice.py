from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atp_models.random_configs import tiny_config
from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.errors import InputError
from atp_runtime.evaluation.pruning_choice import RULES, PruningChoice, last_row
from atp_runtime.generation import GenerationOptions
from atp_runtime.pruning_point import LAST
from atp_runtime.selection import Selection, keeps_all
from atp_runtime.session import Session
from atp_runtime.workspace import Scorer

ONE = GenerationOptions(1)
KEEP = (9, 5, 2)


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as session:
        yield session


@pytest.fixture
def session(opened: Session) -> Iterator[Session]:
    select, scorer = opened.model.select, opened.model.decoder.scorer
    yield opened
    opened.model.select, opened.model.decoder.scorer = select, scorer


@pytest.fixture
def kept(session: Session, photos: list[Path]) -> Callable[..., list[list[int]]]:
    """What each pruning point keeps of an image, as patch numbers."""

    def ask(choice: PruningChoice, question: str = "1", seed: int = 0) -> list[list[int]]:
        session.model.select = choice.apply(session.model, seed)(question)
        answer = session.ask("What is this?", photos[:1], ONE)
        patch = 4 * answer.chunk.row + answer.chunk.column
        visual = answer.chunk.image >= 0
        return [patch[it.kept[visual[it.kept]]].tolist() for it in answer.points]

    return ask


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"bundle", "keep_all"}))
def test_rule_keeps_the_numbers_that_were_given(kept, rule: str) -> None:
    found = kept(PruningChoice(rule, KEEP))
    assert [len(it) for it in found] == list(KEEP)
    assert set(found[2]) <= set(found[1]) <= set(found[0])


def test_bundles_own_rule_stays_when_no_other_is_chosen(session: Session) -> None:
    assert PruningChoice().apply(session.model, 0)("1") is session.model.select


def test_nothing_is_pruned_when_everything_is_kept(session: Session, kept) -> None:
    assert kept(PruningChoice("keep_all")) == [list(range(16))] * 3
    assert keeps_all(session.model.select)


def test_random_tokens_change_with_question_and_seed_only(kept) -> None:
    choice = PruningChoice("random", KEEP)
    first = kept(choice)
    assert kept(choice) == first
    assert kept(choice, question="2") != first
    assert kept(choice, seed=1) != first


def test_uniform_tokens_are_the_same_for_every_question(kept) -> None:
    choice = PruningChoice("uniform", (4, 4, 4))
    # The middles of the quarters of 4 x 4.
    assert kept(choice) == kept(choice, question="2") == [[5, 7, 13, 15]] * 3


def test_rules_by_score_differ_from_one_another(kept) -> None:
    found = [kept(PruningChoice(rule, KEEP)) for rule in ("cross", "self", "both", "last_row")]
    assert len({str(it) for it in found}) > 2


def test_last_row_is_the_attention_of_the_last_token(
    session: Session, photos: list[Path], kept
) -> None:
    """Against scores of the bundle itself, asked about the last token alone."""
    seen: list[np.ndarray] = []

    def scorer(visual, tokens: int, behind: int) -> Scorer:
        asked = Scorer.for_sequence(visual, tokens, behind)
        if not len(visual):
            return asked
        one, row = np.ones(1, dtype=np.float32), np.array([tokens - 1])
        return Scorer(asked.visual_weights, row, one, has_text=True)

    def select(point, _own, cross, _text, visual):
        scores = cross[visual.index]
        kept = np.zeros(len(visual), dtype=np.bool_)
        kept[np.argsort(-scores, kind="stable")[: KEEP[len(seen)]]] = True
        seen.append((4 * visual.row + visual.column)[kept])
        return Selection(kept)

    session.model.decoder.scorer, session.model.select = scorer, select
    session.ask("What is this?", photos[:1], ONE)
    assert kept(PruningChoice("last_row", KEEP)) == [it.tolist() for it in seen]


def test_last_row_asks_nobody_when_no_text_follows() -> None:
    image = np.array([-1, 0, 0])
    asked = last_row(Chunk(image, image, image).visual(), 3, 3)
    assert (asked.text_weights.tolist(), asked.has_text) == ([0], False)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ((9, 5), "the bundle prunes before layers 1, 2, 3: 3 numbers"),
        ((5, 9, 2), "do not rise"),
        ((17, 5, 2), "from 16 to 0"),
        ((9, 5, -1), "from 16 to 0"),
    ],
)
def test_numbers_are_refused_when_they_do_not_fit_the_bundle(
    session: Session, keep: tuple[int, ...], said: str
) -> None:
    with pytest.raises(InputError) as raised:
        PruningChoice("random", keep).apply(session.model, 0)
    assert said in str(raised.value)


def test_other_rule_is_refused_when_the_bundle_does_not_prune(export_bundle) -> None:
    dense = export_bundle(tiny_config(), dense=True).bundle
    with (
        Session.open(dense, threads=1) as session,
        pytest.raises(InputError, match="--keep has 1 numbers"),
    ):
        PruningChoice("random", (5,)).apply(session.model, 0)


def test_numbers_and_rule_are_refused_when_they_do_not_go_together() -> None:
    with pytest.raises(InputError, match="--select random without --keep"):
        PruningChoice("random")
    with pytest.raises(InputError, match="--keep with the rule keep_all"):
        PruningChoice("keep_all", (3,))


def test_rules_that_ask_all_text_do_so_whatever_the_bundle_s_points_ask(
    kept, tiny_bundle: Path, photos: list[Path]
) -> None:
    expected = kept(PruningChoice("cross", KEEP))
    bundle = Bundle.open(tiny_bundle)
    stages = tuple(
        replace(it, pruning=replace(it.pruning, queries=LAST)) if it.pruning else it
        for it in bundle.manifest.stages
    )
    asking_last = Bundle(bundle.root, replace(bundle.manifest, stages=stages))
    with Session(asking_last, open_backend(threads=1)) as other:
        other.model.select = PruningChoice("cross", KEEP).apply(other.model, 0)("1")
        answer = other.ask("What is this?", photos[:1], ONE)
    patch = 4 * answer.chunk.row + answer.chunk.column
    visual = answer.chunk.image >= 0
    assert [patch[it.kept[visual[it.kept]]].tolist() for it in answer.points] == expected
