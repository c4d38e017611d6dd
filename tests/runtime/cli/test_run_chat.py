"""`atp-run --chat`: questions line by line."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.runtime.cli.command_line import SHORT, AtpRun, Outcome


def test_chat_answers_each_line_knowing_those_before(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    ran = atp_run("--chat", "--image", photos[0], *SHORT, stdin=b"What?\n\n  Why? \nSo?")
    answers = asked(["What?", "Why?", "So?"], photos[:1])
    assert (ran.code, ran.out) == (0, "".join(f"{answer}\n" for answer in answers))
    assert ran.err.count("note: The pruning modules are untrained") == 1


def test_chat_goes_on_and_keeps_its_photos_when_a_question_fails(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    too_long = b"?" * 4000
    stdin = b"\n".join([too_long, b"<image>", b"caf\xe9", b"What?", b"Why?"])
    ran = atp_run("--chat", "--image", photos[0], *SHORT, "--quiet", stdin=stdin)
    answers = asked(["What?", "Why?"], photos[:1])
    assert (ran.code, ran.out) == (2, "".join(f"{answer}\n" for answer in answers))
    assert re.findall(r"atp-run: (the \w+ \w+)", ran.err) == [
        "the prompt has",
        "the question contains",
        "the text has",
    ]


def test_chat_is_one_document_when_json_is_wanted(
    atp_run: AtpRun, asked: Callable[..., list[str]], photos: list[Path]
) -> None:
    ran = atp_run("--chat", "--image", photos[0], *SHORT, "--json", stdin=b"What?\n<image>\nWhy?\n")
    turns = ran.document["turns"]
    assert ran.code == 2
    assert [turn["question"] for turn in turns] == ["What?", "<image>", "Why?"]
    assert turns[1]["error"]["exit_code"] == 2
    answers = asked(["What?", "Why?"], photos[:1])
    assert [turn["answer"] for turn in turns if "answer" in turn] == answers


def test_chat_says_nothing_when_nothing_is_asked(atp_run: AtpRun) -> None:
    assert atp_run("--chat", *SHORT) == Outcome(0, "", "")


def test_chat_draws_only_the_turn_with_the_photos(
    atp_run: AtpRun, photos: list[Path], tmp_path: Path
) -> None:
    words = ("--chat", "--image", photos[0], *SHORT, "--show-pruning", tmp_path / "p.png")
    ran = atp_run(*words, "--json", stdin=b"What?\nWhy?\n")
    pictures = [turn["pictures"] for turn in ran.document["turns"]]
    assert pictures == [[str(tmp_path / "p.png")], []]


def test_chat_ends_at_once_when_a_photo_is_damaged(atp_run: AtpRun, tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    ran = atp_run("--chat", "--image", tmp_path / "damaged.png", *SHORT, stdin=b"What?\n")
    assert (ran.code, ran.out) == (2, "")
    assert "damaged.png" in ran.err
