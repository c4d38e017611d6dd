"""`python -m atp_models.demo.show BUNDLE DATA`: one question of each kind, put to a bundle.

The questions go to `atp-run`, as a user's would: this room does not import the runtime's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atp_models.demo.command import Report, add_output_options, run_command
from atp_runtime.errors import AtpError, CheckFailedError, InputError, MachineError

_ATP_RUN = (sys.executable, "-m", "atp_runtime.cli.run")
_LONGEST_ANSWER = 16  # tokens
_ERRORS: dict[int, type[AtpError]] = {1: CheckFailedError, 2: InputError, 3: MachineError}


@dataclass(frozen=True)
class Shown:
    """A question and what came of it.

    Attributes:
        kind: The question's.
        image: Path of the image.
        question: As asked.
        answer: What the bundle said.
        truth: The right answer.
        visual_tokens: Of the image.
        kept: Of these, behind each pruning point.
        mean_visual_tokens: Of these, averaged over all decoder layers.
        picture: Path of the picture of what was pruned; None if none was wanted.
    """

    kind: str
    image: str
    question: str
    answer: str
    truth: str
    visual_tokens: int
    kept: tuple[int, ...]
    mean_visual_tokens: float
    picture: str | None

    @property
    def right(self) -> bool:
        """Whether the answer is the truth."""
        return self.answer == self.truth


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)

    def show(report: Report) -> tuple[dict[str, Any], str]:
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
        answered = []
        for record in one_of_each_kind(options.data):
            answered.append(_ask(options.bundle, options.data.parent, record, options.pictures))
            report(_told(answered[-1]))
        right = sum(shown.right for shown in answered)
        document = {"right": right, "answers": [asdict(shown) for shown in answered]}
        return document, f"{right} of {len(answered)} answers are right"

    return run_command(options, show)


def one_of_each_kind(data: Path) -> list[dict[str, Any]]:
    """A record of each kind in a data set, each about another image as far as possible.

    Raises:
        InputError: The file is not one that `python -m atp_models.demo.data` wrote.
    """
    try:
        records = json.loads(data.read_text(encoding="utf-8"))
        chosen: list[dict[str, Any]] = []
        for kind in sorted({record["kind"] for record in records}):
            of_kind = [record for record in records if record["kind"] == kind]
            shown = {record["image"] for record in chosen}
            chosen.append(next((r for r in of_kind if r["image"] not in shown), of_kind[0]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{data} cannot be read as a data set ({error!r})",
            why="the questions are in it",
            fix="write one with python -m atp_models.demo.data scenes-test OUT_DIR, "
            "and name OUT_DIR/scenes-test.json",
        ) from error
    return chosen


def _ask(bundle: Path, images: Path, record: dict[str, Any], pictures: Path | None) -> Shown:
    """Put the question of a record to a bundle."""
    kind = record["kind"]
    image = images / record["image"]
    asked, answered = (turn["value"] for turn in record["conversations"])
    question = asked.removeprefix("<image>\n")
    command = [*_ATP_RUN, str(bundle), question, "--image", str(image)]
    command += ["--json", "--max-new-tokens", str(_LONGEST_ANSWER)]
    picture = pictures / f"{kind.replace('/', '-')}.png" if pictures else None
    if picture:
        command += ["--show-pruning", str(picture)]
    document = _run(command)
    statistics = document["statistics"]
    return Shown(
        kind=kind,
        image=str(image),
        question=question,
        answer=document["answer"].strip(),
        truth=answered,
        visual_tokens=statistics["visual_tokens"],
        kept=tuple(point["kept"] for point in statistics["points"]),
        mean_visual_tokens=statistics["mean_visual_tokens"],
        picture=str(picture) if picture else None,
    )


def _run(command: list[str]) -> dict[str, Any]:
    """The document that `atp-run --json` prints.

    Raises:
        AtpError: The one that it ended with.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0:
        document: dict[str, Any] = json.loads(done.stdout)
        return document
    if done.returncode not in _ERRORS:
        raise RuntimeError(f"atp-run ended with {done.returncode}: {done.stderr}")
    error = json.loads(done.stdout)["error"]
    raise _ERRORS[done.returncode](error["what"], why=error["why"], fix=error["fix"])


def _told(shown: Shown) -> str:
    verdict = "right" if shown.right else f"wrong, it is {shown.truth!r}"
    kept = " > ".join(str(number) for number in (shown.visual_tokens, *shown.kept))
    return (
        f"{shown.kind:<8} {shown.question}\n"
        f"{'':<8} {shown.answer!r}: {verdict}\n"
        f"{'':<8} visual tokens {kept}, {shown.mean_visual_tokens:.0f} on average over all layers"
        + (f"; {shown.picture}" if shown.picture else "")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atp_models.demo.show",
        description="Ask a bundle one question of each kind in a data set, and show question, "
        "answer, truth and how many visual tokens were kept.",
    )
    parser.add_argument("bundle", type=Path, help="the directory that atp-export wrote")
    parser.add_argument("data", type=Path, help="a data set's JSON file, its images beside it")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="draw there what was pruned for each question"
    )
    add_output_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
