"""What `atp-run` does with its options."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atp_runtime.answer import Answer
from atp_runtime.cli.command import error_document, print_error, print_json, print_note
from atp_runtime.cli.listen import check_listen, listen
from atp_runtime.cli.run_pictures import check_pictures, check_prunes, draw_pictures
from atp_runtime.cli.run_report import answer_document, notes, statistics_lines
from atp_runtime.conversation import ImageSources
from atp_runtime.deadline import DeadlineSelectors
from atp_runtime.errors import AtpError, InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.images import load_image
from atp_runtime.latency.duration import parse_duration
from atp_runtime.latency.table import MeasuredLatency, read_table, table_for, this_setting
from atp_runtime.manifest import read_manifest
from atp_runtime.ranges import open_nvtx
from atp_runtime.sampling import SamplingOptions
from atp_runtime.session import Session


def answer(options: argparse.Namespace) -> int:
    """Asks the one question; returns the exit code."""
    if not (options.question or "").strip():
        raise InputError(
            "no question",
            why="there is nothing to answer.",
            fix="write the question behind the bundle, or use --chat.",
        )
    generation = _check(options)
    with _open(options, packed=False) as session:  # one answer, which is sooner without
        document = _Dialogue(session, options, generation, options.image).ask(options.question)
    if options.json:
        print_json(document)
    return 0


def serve(options: argparse.Namespace) -> int:
    """Answers over a socket until it is stopped; returns the exit code."""
    check_listen(options)
    return listen(
        lambda: _open(options),
        options.listen,
        mode=options.listen_mode,
        generation=_check(options),
        system=options.system,
        quiet=options.quiet,
    )


def chat(options: argparse.Namespace) -> int:
    """Asks every line of standard input; returns the exit code of the last that failed."""
    if options.question is not None:
        raise InputError(
            "--chat with a question",
            why="a chat reads its questions from standard input.",
            fix="leave the question away, or leave --chat away.",
        )
    generation = _check(options)
    code, turns = 0, []
    with _open(options) as session:
        # Read now: a photo that cannot be read would fail every question.
        photos = [session.model.vision.read(path) for path in options.image]
        dialogue = _Dialogue(session, options, generation, photos)
        for question in _questions():
            try:
                document = dialogue.ask(question)
            except AtpError as error:
                code = print_error("atp-run", error)
                document = {"error": error_document(error)}
            turns.append({"question": question, **document})
    if options.json:
        print_json({"turns": turns})
    return code


def _open(options: argparse.Namespace, *, packed: bool = True) -> Session:
    seconds = _deadline(options)
    if seconds is None:
        return _open_bundle(options, packed=packed)
    latency = _latency(options)  # told to be missing before the bundle is loaded
    session = _open_bundle(options)  # packed, as its times were measured
    try:
        model = session.model
        model.select = DeadlineSelectors(model.select, model.manifest, latency, seconds)
    except BaseException:
        session.close()
        raise
    return session


def _open_bundle(options: argparse.Namespace, *, packed: bool = True) -> Session:
    ranges = open_nvtx() if options.nvtx else None  # told to be missing before the bundle is loaded
    session = Session.open(
        options.bundle,
        backend=options.backend,
        threads=options.threads,
        cuda_graphs=options.cuda_graphs,
        packed=packed,
    )
    if ranges is not None:
        session.mark_parts(ranges)
    return session


def _latency(options: argparse.Namespace) -> MeasuredLatency:
    manifest = read_manifest(options.bundle)
    if options.latency_table:
        return MeasuredLatency(read_table(options.latency_table, manifest))
    setting = this_setting(options.backend, options.threads)
    return MeasuredLatency(table_for(options.bundle, manifest, setting))


def _deadline(options: argparse.Namespace) -> float | None:
    if options.deadline is not None:
        return parse_duration(options.deadline, "--deadline")
    if options.latency_table:
        raise InputError(
            "--latency-table without --deadline",
            why="its times say how far pruning must go for a deadline.",
            fix="add --deadline 400ms, or leave the table away.",
        )
    return None


class _Dialogue:
    """A conversation whose answers are shown as the options want them.

    Photos belong to the first question that is answered.
    """

    def __init__(
        self,
        session: Session,
        options: argparse.Namespace,
        generation: GenerationOptions,
        photos: ImageSources,
    ) -> None:
        self._manifest = session.model.manifest
        if options.show_pruning:
            check_prunes(self._manifest)
        self._options = options
        self._deadline = _deadline(options)
        self._generation = generation
        self._photos = photos
        self._conversation = session.conversation(options.system)
        self._answered = 0

    def ask(self, question: str) -> dict[str, Any]:
        """Asks, shows, and returns the answer's JSON document."""
        options, photos = self._options, self._photos
        show = None if options.json else _show
        result = self._conversation.ask(question, photos, self._generation, show)
        self._photos = ()
        if not options.json:
            print(flush=True)
        pictures = []
        if options.show_pruning and photos:
            pictures = draw_pictures(result, self._manifest, options.show_pruning)
        self._answered += 1
        if not options.json:
            self._tell(result, pictures)
        return answer_document(result, self._manifest.provenance.notice, pictures, self._deadline)

    def _tell(self, result: Answer, pictures: Sequence[Path]) -> None:
        notice = self._manifest.provenance.notice if self._answered == 1 else None
        if not self._options.quiet:
            for line in notes(result, notice, pictures, self._deadline):
                print_note(line)
        if self._options.stats:
            for line in statistics_lines(result.statistics):
                print_note(line)


def _check(options: argparse.Namespace) -> GenerationOptions:
    """Refuses what can be refused before the bundle is opened, which may take long."""
    sampling = SamplingOptions(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    generation = GenerationOptions(options.max_new_tokens, sampling, tuple(options.stop))
    _deadline(options)
    for path in options.image:
        if not os.access(path, os.R_OK):
            load_image(path)  # says what is wrong with it
    if options.show_pruning:
        check_pictures(options.show_pruning, len(options.image))
    return generation


def _questions() -> Iterator[str]:
    if sys.stdin is None:
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is no UTF-8 is refused as a question, it does not end the chat.
        sys.stdin.reconfigure(errors="surrogateescape")
    prompt = "> " if sys.stdin.isatty() and sys.stdout and sys.stdout.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            break
        if line.strip():
            yield line.strip()
    if prompt:
        print()


def _show(piece: str) -> None:
    print(piece, end="", flush=True)
