"""A whole run: read the data, ask what is not answered yet, report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from atp_runtime.backends import BACKENDS
from atp_runtime.errors import InputError
from atp_runtime.evaluation.answer_log import AnswerLog, DataFile, Run, open_log
from atp_runtime.evaluation.data_file import Document, sha256
from atp_runtime.evaluation.draw import by_image, draw
from atp_runtime.evaluation.examiner import FAILED, Examiner, ExamRules
from atp_runtime.evaluation.formats.format import Dataset, Format, ReadOptions
from atp_runtime.evaluation.formats.registry import find_format, read_dataset
from atp_runtime.evaluation.image_files import check_images
from atp_runtime.evaluation.json_files import write_declared, write_whole
from atp_runtime.evaluation.machine import package_version, this_machine
from atp_runtime.evaluation.progress import Progress
from atp_runtime.evaluation.pruning_choice import PruningChoice
from atp_runtime.evaluation.question import Question
from atp_runtime.evaluation.report import REPORT_JSON, REPORT_MARKDOWN, Report
from atp_runtime.evaluation.report_markdown import write_report
from atp_runtime.evaluation.summary import summarise
from atp_runtime.manifest import MANIFEST_NAME
from atp_runtime.session import Session


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        bundle: The bundle's directory.
        data: The benchmark's file or directory.
        format: Its name; None finds out.
        read: How to read the data.
        limit: How many questions to draw; None for all.
        seed: Of the drawing, and of random pruning.
        suffix: The line behind each question; None is what the benchmark's models are used to.
        max_new_tokens: Longest answer.
        choice: What prunes.
        images: Whether the images are shown.
        backend: What runs the bundle, see `atp_runtime.backends.open_backend`.
        threads: CPU threads; None lets the backend decide.
        cuda_graphs: Whether decode steps may be recorded as CUDA graphs.
        output: Where report and answers go; None is a directory named for bundle and data.
        restart: Whether to drop the answers of an earlier start.
    """

    bundle: Path
    data: Path
    format: str | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    limit: int | None = None
    seed: int = 0
    suffix: str | None = None
    max_new_tokens: int = 32
    choice: PruningChoice = field(default_factory=PruningChoice)
    images: bool = True
    backend: str = BACKENDS[0]
    threads: int | None = None
    cuda_graphs: bool = True
    output: Path | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--limit", self.limit), ("--max-new-tokens", self.max_new_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name} {value}", why="it must be 1 or more.", fix="raise it.")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}", why="seeds count from 0.", fix="raise it.")

    @property
    def directory(self) -> Path:
        """Where report and answers go."""
        return self.output or Path(f"eval-{self.bundle.resolve().name}-{self.data.stem}")


def evaluate(plan: Plan, stream: TextIO | None) -> Report:
    """Asks every question that has no answer yet, and writes the report.

    Args:
        plan: What to do.
        stream: Where to say how far it is; None says nothing.

    Raises:
        InputError: Data, bundle or options cannot be used, or the output directory has the
            answers of another run.
        CheckFailedError: A file of the bundle was changed, or scores are not finite.
        MachineError: Memory or disk do not suffice.
    """
    document = Document.read(plan.data)
    format_ = find_format(document, plan.format)
    dataset = read_dataset(document, format_, plan.read)
    questions = draw(dataset.questions, plan.limit, plan.seed)
    if plan.images:
        check_images(questions)
    with Session.open(
        plan.bundle, backend=plan.backend, threads=plan.threads, cuda_graphs=plan.cuda_graphs
    ) as session:
        manifest = session.model.manifest
        select = plan.choice.apply(session.model, plan.seed)
        run = _run(plan, format_, dataset)
        rules = ExamRules(run.prompt_suffix, plan.max_new_tokens, plan.images)
        with open_log(plan.directory, run, restart=plan.restart) as log:
            proven = any(it.finish_reason != FAILED for it in log.answers.values())
            _ask_all(Examiner(session, select, rules, proven=proven), questions, log, stream)
            answers = [log.answers[question.id] for question in questions]
    bundle = plan.bundle.resolve().name, manifest
    report = summarise(answers, run, format_, bundle, this_machine(plan.threads))
    write_whole(plan.directory / REPORT_MARKDOWN, write_report(report))
    write_declared(plan.directory / REPORT_JSON, report)
    if format_.submission and not report.accuracy:
        name, submit = format_.submission
        read = {it.id: it.read or "" for it in answers}
        write_whole(plan.directory / name, submit(document, read))
    return report


def _ask_all(
    examiner: Examiner, questions: Sequence[Question], log: AnswerLog, stream: TextIO | None
) -> None:
    before = [log.answers[question.id] for question in questions if question.id in log.answers]
    progress = Progress(len(questions), before, stream)
    try:
        for question in by_image(questions):
            if question.id not in log.answers:
                answered = examiner.ask(question)
                log.add(answered)
                progress.answered(answered)
    finally:
        progress.end()


def _run(plan: Plan, format_: Format, dataset: Dataset) -> Run:
    return Run(
        version=package_version("atp-llava"),
        bundle=hashlib.sha256((plan.bundle / MANIFEST_NAME).read_bytes()).hexdigest(),
        data=tuple(DataFile(path.name, sha256(path)) for path in dataset.files),
        format=format_.name,
        split=plan.read.split or "",
        circular=plan.read.circular,
        limit=plan.limit,
        seed=plan.seed,
        prompt_suffix=format_.suffix if plan.suffix is None else plan.suffix,
        max_new_tokens=plan.max_new_tokens,
        select=plan.choice.rule,
        keep=plan.choice.keep,
        images=plan.images,
        backend=plan.backend,
    )
