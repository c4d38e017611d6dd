"""What `atp-profile` does when it is told what to ask."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from atp_runtime.answer import Answer
from atp_runtime.cli.command import InterruptedWorkError, print_error, print_json, print_note
from atp_runtime.cli.run_progress import run_progress
from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document
from atp_runtime.evaluation.draw import draw
from atp_runtime.evaluation.formats.format import ReadOptions
from atp_runtime.evaluation.formats.registry import find_format, read_dataset
from atp_runtime.evaluation.json_files import write_whole
from atp_runtime.images import load_image
from atp_runtime.manifest import read_manifest
from atp_runtime.profiling.csv_file import profile_csv
from atp_runtime.profiling.html_report import html_report
from atp_runtime.profiling.layer_files import is_detailed, layer_files
from atp_runtime.profiling.layers import measure_layers
from atp_runtime.profiling.measure import ProfilePlan, RunBy, measure_profile
from atp_runtime.profiling.profile_file import FILE, Profile, write_profile
from atp_runtime.profiling.text_report import text_report
from atp_runtime.profiling.timed_turn import Question
from atp_runtime.pruning_view import draw_answer, pruned_images
from atp_runtime.schema import to_json

CSV, HTML = "profile.csv", "report.html"
_SEED = 0


def profile_answers(options: argparse.Namespace) -> int:
    """Measures answers and writes what was found; returns the exit code."""
    plan = _plan(options)
    output: Path = options.output or Path(f"profile-{options.bundle.resolve().name}")
    _check_writable(output)
    run_by = RunBy(options.backend, options.threads, options.cuda_graphs, options.nvtx)
    measured = measure_profile(options.bundle, plan, run_by, run_progress(quiet=options.quiet))
    profile = measured.profile
    write_whole(output / CSV, profile_csv(profile))
    write_whole(output / HTML, html_report(profile, _pictures(options.bundle, measured.answer)))
    write_profile(output / FILE, profile)
    if options.backend == "tensorrt" and measured.complete:
        _write_layers(options, plan, output)
    if options.json:
        print_json({"output": str(output), "complete": measured.complete, **to_json(profile)})
    else:
        print("\n".join(text_report(profile)))
    if not options.quiet:
        print_note(f"report: {output / HTML}")
    return 0 if measured.complete else print_error("atp-profile", _cut_short(profile, plan))


def _write_layers(options: argparse.Namespace, plan: ProfilePlan, output: Path) -> None:
    """Adds what the layers of the engines take."""
    engines = measure_layers(options.bundle, plan.questions[0], plan.new_tokens)
    files = layer_files(engines)
    for name, text in files.items():
        write_whole(output / name, text)
    if not options.quiet:
        print_note(f"layers of the engines: {len(files)} files, {output / 'layers_*.json'}")
    if not all(map(is_detailed, engines)):
        print_note(
            "the engines tell their layers by name alone, which viewers refuse; build them again: "
            "atp-export engines BUNDLE"
        )


def _cut_short(profile: Profile, plan: ProfilePlan) -> InterruptedWorkError:
    return InterruptedWorkError(
        f"interrupted after {profile.asked.runs} of {plan.runs} runs",
        why="Ctrl-C ended the measuring; what was measured is written.",
        fix="run it again for all of them.",
    )


def _plan(options: argparse.Namespace) -> ProfilePlan:
    wrong = "--tokens with a question" if options.tokens else None
    if options.data and (options.image or options.prompt):
        wrong = "--data with --image or --prompt"
    if wrong:
        raise InputError(
            wrong,
            why="a question is measured as it is, and data has its own.",
            fix="choose one of --image and --prompt, --data, and --tokens.",
        )
    if options.data:
        questions, source = _drawn(options), options.data.name
    else:
        for image in options.image:
            load_image(image)  # before a bundle is loaded for it
        prompt = options.prompt or options.usual_prompt
        questions = (Question(prompt, tuple(options.image)),)
        source = ", ".join(path.name for path in options.image) or "no photo"
    return ProfilePlan(questions, source, options.new_tokens, options.runs, options.warmup)


def _drawn(options: argparse.Namespace) -> tuple[Question, ...]:
    if options.samples < 1:
        raise InputError(
            f"--samples {options.samples}", why="there is nothing to ask.", fix="choose more."
        )
    document = Document.read(options.data)
    format_ = find_format(document, None)
    asked = draw(read_dataset(document, format_, ReadOptions()).questions, options.samples, _SEED)
    return tuple(
        Question(question.text(format_.suffix), tuple(question.sources())) for question in asked
    )


def _pictures(bundle: Path, answer: Answer) -> list[Image.Image]:
    """What was pruned of the photos."""
    vision = read_manifest(bundle).vision
    if not answer.points and vision.pruning is None:
        return []
    return [draw_answer(answer, image, vision) for image in pruned_images(answer)]


def _check_writable(output: Path) -> None:
    """Refuses before minutes are spent on what cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise InputError(
            f"{output}: {error.strerror or error}",
            why="the profile cannot be written there.",
            fix="choose another directory with --output.",
        ) from error
