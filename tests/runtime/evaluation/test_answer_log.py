import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from atp_runtime.errors import InputError, MachineError
from atp_runtime.evaluation.answer_log import ANSWERS, RUN, DataFile, Run, open_log, read_answers


def logged(directory: Path, run: Run, *, restart: bool = False) -> list[str]:
    with open_log(directory, run, restart=restart) as log:
        return list(log.answers)


def test_answers_are_there_again_when_the_run_goes_on(
    this_run: Run, tmp_path: Path, answered
) -> None:
    written = [answered("1", numbers={"objects": 2.0}), answered("2", answer="a\n“b” \u2028")]
    with open_log(tmp_path / "new/out", this_run, restart=False) as log:
        for it in written:
            log.add(it)
    with open_log(tmp_path / "new/out", this_run, restart=False) as log:
        assert list(log.answers.values()) == written
        log.add(answered("3"))
    assert [it.id for it in read_answers(tmp_path / "new/out")] == ["1", "2", "3"]


def test_answer_is_in_the_file_as_soon_as_it_is_added(
    this_run: Run, tmp_path: Path, answered
) -> None:
    with open_log(tmp_path, this_run, restart=False) as log:
        log.add(answered("1"))
        assert [it.id for it in read_answers(tmp_path)] == ["1"]


@pytest.mark.parametrize("torn", ['{"id": "2", "gro', '{"id": "2"}'])
def test_torn_last_line_is_dropped_when_the_run_goes_on(
    this_run: Run, tmp_path: Path, answered, torn: str
) -> None:
    with open_log(tmp_path, this_run, restart=False) as log:
        log.add(answered("1"))
    with (tmp_path / ANSWERS).open("a") as file:
        file.write(torn)
    with open_log(tmp_path, this_run, restart=False) as log:
        assert list(log.answers) == ["1"]
        log.add(answered("2"))
    assert [it.id for it in read_answers(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_suffix": "Briefly."}, "prompt_suffix '', now 'Briefly.'"),
        ({"limit": 5, "seed": 2}, "limit None, now 5; seed 0, now 2"),
        ({"bundle": "c" * 64}, "bundle 'bbb"),
        ({"data": (DataFile("d.json", "e" * 64),)}, "data d.json dddddddddddd, now d.json eeee"),
        ({"select": "random", "keep": (3, 2)}, "keep none, now 3, 2"),
    ],
)
def test_other_run_is_refused_with_what_differs_and_may_start_afresh(
    this_run: Run, tmp_path: Path, answered, change, said: str
) -> None:
    with open_log(tmp_path, this_run, restart=False) as log:
        log.add(answered("1"))
    other = replace(this_run, **change)
    with pytest.raises(InputError, match="has the answers of another run") as raised:
        logged(tmp_path, other)
    assert said in str(raised.value)
    assert logged(tmp_path, this_run) == ["1"]
    assert logged(tmp_path, other, restart=True) == []
    assert logged(tmp_path, other) == []


def test_other_run_may_start_when_nothing_was_answered_yet(this_run: Run, tmp_path: Path) -> None:
    logged(tmp_path, this_run)
    assert logged(tmp_path, replace(this_run, seed=1)) == []


def test_answers_are_refused_when_nothing_says_whose_they_are(
    this_run: Run, tmp_path: Path, answered
) -> None:
    with open_log(tmp_path, this_run, restart=False) as log:
        log.add(answered("1"))
    (tmp_path / RUN).unlink()
    with pytest.raises(InputError, match=r"has answers\.jsonl but no run\.json"):
        logged(tmp_path, this_run)


def test_damaged_line_is_named(this_run: Run, tmp_path: Path, answered) -> None:
    with open_log(tmp_path, this_run, restart=False) as log:
        log.add(answered("1"))
    with (tmp_path / ANSWERS).open("a") as file:
        file.write('{"id": "2"}\n')
    with pytest.raises(InputError, match=r"answers\.jsonl, line 2: .*'group' is missing"):
        logged(tmp_path, this_run)


def open_in_another_process(directory: Path, run: Run, told) -> None:
    try:
        logged(directory, run)
    except MachineError as error:
        told.put(error.what)


def test_second_process_is_refused_while_the_first_writes(this_run: Run, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    with open_log(tmp_path, this_run, restart=False):
        other = spawn.Process(target=open_in_another_process, args=(tmp_path, this_run, told))
        other.start()
        assert "is in use by another process" in told.get(timeout=60)
        other.join()
