"""What `atp-run` does with its options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from atp_runtime.cli.command import print_json
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.picture import save_picture
from atp_runtime.pruning_view import draw_answer, pruned_images
from atp_runtime.sampling import SamplingOptions
from atp_runtime.schema import to_json
from atp_runtime.session import Answer, Session
from atp_runtime.statistics import Statistics


def answer(options: argparse.Namespace) -> int:
    """Asks the one question."""
    if options.question is None:
        raise InputError(
            "no question",
            why="there is nothing to answer.",
            fix="write the question behind the bundle, or use --chat.",
        )
    generation = generation_options(options)
    with Session.open(options.bundle, threads=options.threads) as session:
        conversation = session.conversation(options.system)
        show = _no_show if options.json else _show
        result = conversation.ask(options.question, options.image, generation, show)
        pictures = _draw(result, session, options.show_pruning)
        _report(result, session, pictures, options)
    return 0


def chat(options: argparse.Namespace) -> int:
    """Asks every line of standard input; photos belong to the first."""
    if options.question is not None or options.json:
        raise InputError(
            "--chat with a question or --json",
            why="a chat reads its questions from standard input and prints answers as they come.",
            fix="leave the question and --json away, or leave --chat away.",
        )
    generation = generation_options(options)
    with Session.open(options.bundle, threads=options.threads) as session:
        conversation = session.conversation(options.system)
        images = options.image
        for question in _questions(quiet=options.quiet):
            result = conversation.ask(question, images, generation, _show)
            pictures = _draw(result, session, options.show_pruning) if images else []
            _report(result, session, pictures, options)
            images = []
    return 0


def generation_options(options: argparse.Namespace) -> GenerationOptions:
    """The generation options of the command line.

    Raises:
        InputError: One of them is out of range.
    """
    sampling = SamplingOptions(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    return GenerationOptions(options.max_new_tokens, sampling, tuple(options.stop))


def _questions(*, quiet: bool) -> Iterator[str]:
    prompt = "" if quiet or not sys.stdin.isatty() else "> "
    while True:
        print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _show(piece: str) -> None:
    print(piece, end="", flush=True)


def _no_show(_piece: str) -> None:
    """The answer is part of the JSON document."""


def _draw(result: Answer, session: Session, target: Path | None) -> list[Path]:
    """One picture per photo of the turn; several photos get a number each."""
    if target is None:
        return []
    grid, images = session.bundle.manifest.vision.grid, pruned_images(result)
    if not images:
        raise InputError(
            "--show-pruning without a photo",
            why="only visual tokens are pruned.",
            fix="add --image PHOTO.",
        )
    paths = []
    for number in images:
        name = f"{target.stem}-{number + 1}{target.suffix}" if len(images) > 1 else target.name
        paths.append(target.with_name(name))
        save_picture(draw_answer(result, number, grid), paths[-1])
    return paths


def _report(
    result: Answer, session: Session, pictures: list[Path], options: argparse.Namespace
) -> None:
    notice = session.bundle.manifest.provenance.notice
    if options.json:
        print_json(
            {
                "answer": result.text,
                "finish_reason": result.finish_reason,
                "notice": notice,
                "pictures": [str(path) for path in pictures],
                "statistics": to_json(result.statistics),
            }
        )
        return
    print(flush=True)
    if options.quiet:
        return
    if notice:
        print(f"note: {notice}", file=sys.stderr)
    for path in pictures:
        print(f"picture: {path}", file=sys.stderr)
    if options.stats:
        for line in describe(result.statistics):
            print(line, file=sys.stderr)


def describe(statistics: Statistics) -> list[str]:
    """The statistics as lines for people."""
    s = statistics
    lines = [
        f"prompt            {s.prompt_tokens} tokens, {s.visual_tokens} of them visual"
        + (f"; {s.reused_tokens} more from the cache" if s.reused_tokens else "")
    ]
    for point in s.points:
        share = 100 * point.kept / point.entered if point.entered else 0
        note = f" ({point.note})" if point.note else ""
        lines.append(
            f"before layer {point.before_layer:<4} {point.kept} of {point.entered} visual tokens "
            f"kept, {share:.0f} %{note}"
        )
    if s.mean_visual_tokens is not None:
        lines.append(f"visual tokens     {s.mean_visual_tokens:.1f} on average over all layers")
    lines.append(
        f"first token       {1e3 * s.first_token_seconds:.0f} ms: images and tokens "
        f"{1e3 * s.preprocess_seconds:.0f}, vision {1e3 * s.vision_seconds:.0f}, "
        f"prefill {1e3 * s.prefill_seconds:.0f} ({s.prefill_gflops:.1f} GFLOP/s)"
    )
    lines.append(f"answer            {s.answer_tokens} tokens" + _rate(s))
    lines.append(f"peak memory       {s.peak_memory_bytes / 2**20:.0f} MiB")
    return lines


def _rate(statistics: Statistics) -> str:
    if statistics.tokens_per_second is None or statistics.decode_gbps is None:
        return ""
    rate, traffic = statistics.tokens_per_second, statistics.decode_gbps
    return f", {rate:.1f} tokens/s ({traffic:.1f} GB/s)"
