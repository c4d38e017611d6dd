from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from atp_runtime.decoder_results import DecoderState
from atp_runtime.history import History

START = DecoderState(0, (0, 0))


def history_of(*prefills: tuple[str, tuple[int, int], str]) -> History:
    """Per turn: prompt letters, positions that each segment kept of them, answer letters."""
    history, state = History(START), START
    for prompt, kept, answer in prefills:
        state = after_prefill(state, len(prompt), kept)
        history.prefilled(keys(prompt), state)
        for letter in answer:
            history.decoded(ord(letter))
            state = after_prefill(state, 1, (1, 1))
    return history


def keys(letters: str) -> list[int]:
    return [ord(letter) for letter in letters]


def after_prefill(state: DecoderState, tokens: int, kept: Sequence[int]) -> DecoderState:
    lengths = tuple(a + b for a, b in zip(state.lengths, kept, strict=True))
    return DecoderState(state.position + tokens, lengths)


def test_nothing_is_reused_when_the_conversation_begins() -> None:
    history = History(START)
    assert history.reusable(keys("abc")) == 0
    assert history.cut(0) == START


def test_prompt_and_answer_are_reused_when_the_next_prompt_repeats_them() -> None:
    history = history_of(("abc", (3, 1), "xy"))
    assert history.reusable(keys("abcxyz")) == 5
    assert history.cut(5) == DecoderState(5, (5, 3))


def test_answer_is_reused_up_to_the_difference_when_the_next_prompt_changes_it() -> None:
    history = history_of(("abc", (3, 1), "xyz"))
    assert history.reusable(keys("abcxq")) == 4
    assert history.cut(4) == DecoderState(4, (4, 2))
    assert len(history) == 4


def test_prefill_is_run_again_as_a_whole_when_the_next_prompt_changes_it() -> None:
    history = history_of(("abc", (3, 1), "x"), ("def", (2, 1), "y"))
    assert history.reusable(keys("abcxdeq")) == 4
    assert history.cut(4) == DecoderState(4, (4, 2))


def test_first_prefill_is_run_again_when_the_next_prompt_begins_otherwise() -> None:
    assert history_of(("abc", (3, 1), "x")).reusable(keys("qbcx")) == 0


def test_one_token_is_left_to_run_when_the_prompt_is_all_in_the_caches() -> None:
    history = history_of(("abc", (3, 1), "xyz"))
    assert history.reusable(keys("abcxy")) == 4


def test_prefill_is_run_again_when_the_same_prompt_comes_twice() -> None:
    assert history_of(("abc", (3, 1), "")).reusable(keys("abc")) == 0


def whole_history(*prefills: tuple[str, str]) -> History:
    """As `history_of`, with rules that drop nothing."""
    history, state = History(START), START
    for prompt, answer in prefills:
        state = after_prefill(state, len(prompt), (len(prompt),) * 2)
        history.prefilled(keys(prompt), state, whole=True)
        for letter in answer:
            history.decoded(ord(letter))
            state = after_prefill(state, 1, (1, 1))
    return history


def test_whole_prefill_is_reused_up_to_the_difference() -> None:
    history = whole_history(("abcd", "xy"))
    assert history.reusable(keys("abqd")) == 2
    assert history.cut(2) == DecoderState(2, (2, 2))
    assert history.reusable(keys("abcd")) == 2


def test_whole_prefills_can_be_cut_again_and_again() -> None:
    history = whole_history(("abcd", "xy"), ("efgh", "z"))
    assert history.cut(8) == DecoderState(8, (8, 8))
    assert history.cut(7) == DecoderState(7, (7, 7))
    assert history.cut(5) == DecoderState(5, (5, 5))
    assert history.cut(0) == START


def test_pruned_prefill_before_a_whole_one_is_still_run_as_a_whole() -> None:
    history, pruned = History(START), DecoderState(3, (3, 1))
    history.prefilled(keys("abc"), pruned)
    history.prefilled(keys("def"), after_prefill(pruned, 3, (3, 3)), whole=True)
    assert history.reusable(keys("abcdex")) == 5
    assert history.cut(5) == DecoderState(5, (5, 3))
    assert history.reusable(keys("abxdex")) == 0


def test_unpruned_are_the_tokens_before_the_first_pruned_prefill() -> None:
    assert History(START).unpruned() == 0
    assert history_of(("abc", (3, 1), "x")).unpruned() == 0
    history = whole_history(("abc", "xy"))
    assert history.unpruned() == 5
    history.prefilled(keys("def"), DecoderState(8, (8, 6)))
    history.decoded(ord("z"))
    assert history.unpruned() == 5
    assert history.cut(5) == DecoderState(5, (5, 5))


def test_answer_begins_at_the_prefills_end_when_the_prompt_repeats_just_the_prefill() -> None:
    history = history_of(("abc", (3, 1), "xyz"))
    assert history.reusable(keys("abcd")) == 3
    assert history.cut(3) == DecoderState(3, (3, 1))


@dataclass(frozen=True)
class Cell:
    """A token of the naive model: which pruned prefill it came in with, and the state behind it.

    It belongs to none if it was decoded, or came in with a whole prefill.
    """

    key: int
    prefill: int | None
    state: DecoderState


class HistoryMachine(RuleBasedStateMachine):
    """Compares with a list of all tokens, searched from its end."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History(START)
        self.cells: list[Cell] = []
        self.prefills = 0

    @property
    def state(self) -> DecoderState:
        return self.cells[-1].state if self.cells else START

    def may_cut_at(self, length: int) -> bool:
        if length in (0, len(self.cells)):
            return True
        before, behind = self.cells[length - 1], self.cells[length]
        return before.prefill is None or before.prefill != behind.prefill

    @rule(
        repeated=st.integers(0, 12),
        added=st.lists(st.integers(0, 2), min_size=1, max_size=5),
        kept=st.tuples(st.integers(0, 5), st.integers(0, 5)) | st.none(),
    )
    def ask(self, repeated: int, added: list[int], kept: tuple[int, int] | None) -> None:
        prompt = [cell.key for cell in self.cells[:repeated]] + added
        reused = self.history.reusable(prompt)
        same = [cell.key == key for cell, key in zip(self.cells, prompt, strict=False)]
        allowed = [
            length
            for length in range(min(len(same), len(prompt) - 1) + 1)
            if all(same[:length]) and self.may_cut_at(length)
        ]
        assert reused == max(allowed)
        assert self.history.cut(reused) == (self.cells[reused - 1].state if reused else START)
        del self.cells[reused:]
        new = prompt[reused:]
        if kept is None:
            before = self.state
            for place, key in enumerate(new, 1):
                self.cells.append(Cell(key, None, after_prefill(before, place, (place, place))))
            self.history.prefilled(new, self.state, whole=True)
            return
        state = after_prefill(self.state, len(new), [min(count, len(new)) for count in kept])
        self.prefills += 1
        self.history.prefilled(new, state)
        self.cells += [Cell(key, self.prefills, state) for key in new]

    @rule(token=st.integers(0, 2))
    def decode(self, token: int) -> None:
        if self.cells:
            self.history.decoded(token)
            self.cells.append(Cell(token, None, after_prefill(self.state, 1, (1, 1))))

    @invariant()
    def has_all_tokens(self) -> None:
        assert len(self.history) == len(self.cells)


def test_history_agrees_with_a_list_of_all_tokens_whatever_is_asked() -> None:
    run_state_machine_as_test(
        HistoryMachine, settings=settings(max_examples=150, stateful_step_count=20, deadline=None)
    )
