from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.generation import GeneratedText, GenerationOptions, generate
from atp_runtime.sampling import SamplingOptions
from atp_runtime.tokenizer import Tokenizer

END = 256


def byte_tokenizer() -> Tokenizer:
    """One token per byte of UTF-8, and an end-of-sequence token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend, bos_token=None, eos_token_ids=frozenset({END}))


TOKENIZER = byte_tokenizer()


class Script:
    """Says what it was told to, token by token, and remembers what it was fed."""

    def __init__(self, ids: Sequence[int], room: int = 10_000) -> None:
        self.ids = ids
        self.room = room
        self.fed: list[int] = []

    def first(self) -> np.ndarray:
        return one_hot(self.ids[0])

    def has_room(self) -> bool:
        return len(self.fed) < self.room

    def feed(self, token: int) -> np.ndarray:
        self.fed.append(token)
        return one_hot(self.ids[len(self.fed)])


def one_hot(token: int) -> np.ndarray:
    logits = np.zeros(END + 1, dtype=np.float32)
    logits[token] = 5
    return logits


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def say(
    text: str,
    *,
    room: int = 10_000,
    end: bool = True,
    show: Callable[[str], None] | None = None,
    max_new_tokens: int = 1000,
    stop: tuple[str, ...] = (),
) -> tuple[GeneratedText, Script]:
    script = Script(ids_of(text) + [END] * end, room)
    options = GenerationOptions(max_new_tokens, stop=stop)
    return generate(script.first(), script, TOKENIZER, options, show), script


def test_answer_ends_without_its_mark_when_the_model_ends_it() -> None:
    generated, script = say("yes")
    assert (generated.text, generated.finish_reason) == ("yes", "eos")
    assert generated.ids == (*ids_of("yes"), END)
    assert script.fed == ids_of("yes")


def test_answer_is_empty_when_the_model_says_nothing() -> None:
    generated, script = say("")
    assert (generated.text, generated.ids, generated.finish_reason) == ("", (END,), "eos")
    assert script.fed == []


@pytest.mark.parametrize("count", [1, 2])
def test_answer_is_cut_when_it_reaches_max_new_tokens(count: int) -> None:
    generated, script = say("yes", max_new_tokens=count)
    assert (generated.text, generated.finish_reason) == ("yes"[:count], "length")
    assert script.fed == ids_of("yes")[: count - 1]


def test_answer_is_whole_when_it_ends_exactly_at_max_new_tokens() -> None:
    generated, _ = say("yes", max_new_tokens=4)
    assert (generated.text, generated.finish_reason) == ("yes", "eos")


def test_answer_goes_on_behind_its_end_when_that_is_to_be_ignored() -> None:
    script = Script([*ids_of("a"), END, *ids_of("bc"), END])
    options = GenerationOptions(4, ignore_end=True)
    generated = generate(script.first(), script, TOKENIZER, options)
    assert generated.finish_reason == "length"
    assert generated.ids == (*ids_of("a"), END, *ids_of("bc"))


def test_last_token_is_told_but_not_run_when_the_positions_are_used_up() -> None:
    generated, script = say("yes", room=1)
    assert (generated.text, generated.finish_reason) == ("ye", "context")
    assert script.fed == ids_of("y")


def test_stop_string_ends_the_answer_and_is_not_shown_when_it_comes_in_pieces() -> None:
    shown: list[str] = []
    generated, script = say("a\nUSER: b", stop=("\nUSER:",), show=shown.append)
    assert (generated.text, generated.finish_reason) == ("a", "stop")
    assert "".join(shown) == "a"
    assert script.fed == ids_of("a\nUSER")


def test_beginning_of_a_stop_string_is_shown_when_the_answer_ends_in_it() -> None:
    generated, _ = say("a\nUS", stop=("\nUSER:",))
    assert (generated.text, generated.finish_reason) == ("a\nUS", "eos")


def test_stop_string_counts_when_only_the_end_completes_it() -> None:
    # A lone first byte of a two-byte character becomes a replacement character at the end.
    script = Script([*ids_of("ab"), ids_of("é")[0], END])
    options = GenerationOptions(stop=("b\ufffd",))
    generated = generate(script.first(), script, TOKENIZER, options)
    assert (generated.text, generated.finish_reason) == ("a", "stop")


def test_character_is_shown_whole_when_it_takes_several_tokens() -> None:
    shown: list[str] = []
    generated, _ = say("é🎉", show=shown.append)
    assert shown == ["é", "🎉"]
    assert generated.text == "é🎉"


def test_times_rise_and_there_is_one_per_token() -> None:
    generated, _ = say("yes")
    assert len(generated.seconds) == len(generated.ids)
    assert list(generated.seconds) == sorted(generated.seconds)


@given(
    text=st.text("abé\n", max_size=12),
    stop=st.lists(st.text("abé\n", min_size=1, max_size=3), max_size=3),
    max_new_tokens=st.integers(1, 16),
)
def test_pieces_join_to_what_comes_before_the_first_stop_string(
    text: str, stop: list[str], max_new_tokens: int
) -> None:
    shown: list[str] = []
    generated, script = say(
        text, stop=tuple(stop), max_new_tokens=max_new_tokens, show=shown.append
    )
    sampled = TOKENIZER.decode(list(generated.ids))
    ends = [sampled.index(it) + len(it) for it in stop if it in sampled]
    if ends:
        longest = max((it for it in stop if sampled[: min(ends)].endswith(it)), key=len)
        sampled = sampled[: min(ends) - len(longest)]
    assert generated.text == "".join(shown) == sampled
    assert (generated.finish_reason == "stop") == bool(ends)
    assert script.fed == list(generated.ids[:-1])


def test_answers_are_equal_when_the_seed_is_and_differ_otherwise() -> None:
    def sample(seed: int) -> tuple[int, ...]:
        script = Script(ids_of("x" * 40))
        options = GenerationOptions(20, SamplingOptions(temperature=50.0, seed=seed))
        return generate(script.first(), script, TOKENIZER, options).ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_logits_are_refused_when_they_are_not_finite() -> None:
    logits = one_hot(3)
    logits[0] = np.nan
    with pytest.raises(CheckFailedError, match="NaN"):
        generate(logits, Script([1]), TOKENIZER, GenerationOptions())


@pytest.mark.parametrize(
    ("options", "said"),
    [({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"stop": ("",)}, "stop string is empty")],
)
def test_options_are_refused_when_no_answer_can_be_made_with_them(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        GenerationOptions(**options)
