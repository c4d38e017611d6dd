"""`atp-export CHECKPOINT BUNDLE`: what is refused, what is printed, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.export.command_line import Run, assert_refused, finished_steps

from atp_export.job import ExportJob
from atp_export.layout import EMBEDDING_FILE
from atp_export.pipeline import export_bundle
from atp_export.progress import Reporter


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prune-at", "0"], "layer 0"),
        (["--prune-at", "99"], "layer 99"),
        (["--prune-at", "2,2"], "twice"),
        (["--prune-at", "3,1"], "after"),
        (["--prune-at", "x"], "not a list of layer numbers"),
        (["--prune-at", "1,"], "not a list of layer numbers"),
        (["--prune-at", ""], "not a list of layer numbers"),
        (["--prune-at", "1", "--dense"], "not allowed with"),
        (["--redundancy", "text"], "text"),
        (["--redundancy", "self", "--dense"], "nothing is pruned"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--max-tokens", "2049"], "2048"),
        (["--max-tokens", "many"], "--max-tokens"),
        (["--precision", "int8"], "int8"),
        (["--dialect", "french"], "french"),
        (["--parity", "maybe"], "maybe"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    run: Run, checkpoint: Path, bundle: Path, words: list[str], part: str
) -> None:
    assert_refused(run(checkpoint, bundle, *words), 2, part)
    assert not bundle.parent.exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    run: Run, checkpoint: Path, bundle: Path
) -> None:
    output = run(checkpoint, bundle, "--dry-run")
    assert output.code == 0
    assert output.err == ""
    for part in ("segment_3", "past_key_values.{l}.key|value", "Orin Nano 8GB", "16 visual tokens"):
        assert part in output.out
    assert not bundle.parent.exists()


def test_a_dry_run_is_a_document_when_json_is_asked_for(
    run: Run, checkpoint: Path, bundle: Path
) -> None:
    document = run(checkpoint, bundle, "--dry-run", "--json", "--dense").document
    assert document.keys() == {"plan", "stages", "footprint"}
    assert [segment["name"] for segment in document["plan"]["segments"]] == ["segment_0"]
    assert document["stages"]["vision"]["inputs"][0]["shape"] == ["images", 3, 32, 32]
    assert document["footprint"]["export_peak"] > 0


def test_export_verify_and_inspect_end_to_end(run: Run, checkpoint: Path, bundle: Path) -> None:
    words = ("--precision", "fp32", "--prune-at", "2", "--redundancy", "self")
    exported = run(checkpoint, bundle, *words, "--json")
    assert exported.code == 0
    document = exported.document
    assert document["parity"]["passed"] is True
    assert document["unchanged"] is False
    assert "untrained" in document["notice"]
    assert exported.err == ""

    verified = run("verify", bundle, "--checkpoint", checkpoint, "--parity", "sampled")
    assert verified.code == 0
    assert "✓ hashes" in verified.out
    assert "✓ ONNX checker: vision, segment_0, segment_1, head" in verified.out
    assert "✓ parity" in verified.out

    shown = run("inspect", bundle)
    assert shown.code == 0
    assert f"made by: atp-export {checkpoint} {bundle} --precision fp32" in shown.out
    document = run("inspect", bundle, "--json").document
    assert document["precision"] == "fp32"
    points = [stage["pruning"] for stage in document["stages"] if stage["pruning"]]
    assert [point["parameters"]["redundancy"] for point in points] == ["self"]

    again = run(checkpoint, bundle, *words)
    assert again.code == 0
    assert "already there" in again.out
    assert "compared" not in again.out
    other = run(checkpoint, bundle, "--precision", "fp16")
    assert_refused(other, 2, "holds another bundle")


def test_an_unchecked_bundle_that_is_there_is_said_to_be_unchecked(
    run: Run, checkpoint: Path, published: ExportJob
) -> None:
    words = ("--precision", "fp32", "--prune-at", "2", "--dialect", "portable")
    output = run(checkpoint, published.bundle, *words)
    assert output.code == 0
    assert "not compared with PyTorch" in output.out


def test_a_missing_checkpoint_is_refused(run: Run, bundle: Path) -> None:
    assert_refused(run("/no/such/checkpoint", bundle), 2, "/no/such/checkpoint")


def test_the_checkpoint_is_no_place_for_the_bundle(run: Run, checkpoint: Path) -> None:
    assert_refused(run(checkpoint, checkpoint), 2, "is the checkpoint itself")


def test_a_bundle_inside_of_a_file_is_refused(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(run(checkpoint, tmp_path / "file" / "bundle"), 2, "in the way")


def test_a_place_that_cannot_be_written_is_the_machines_fault(run: Run, checkpoint: Path) -> None:
    # Nobody, not even root, makes directories there.
    assert_refused(run(checkpoint, "/proc/bundle"), 3, "/proc/bundle.partial")


def test_a_full_disk_ends_with_code_3_and_keeps_what_was_finished(
    run: Run,
    make_job: Callable[..., ExportJob],
    stumble_at: Callable[[str], Reporter],
    checkpoint: Path,
) -> None:
    job = make_job(prune_at=[2])
    with suppress(KeyboardInterrupt):
        export_bundle(job, parity="off", reporter=stumble_at("embedding"))
    # Every write to this device fails as on a full disk.
    partial = job.bundle.with_name("bundle.partial")
    (partial / EMBEDDING_FILE).symlink_to("/dev/full")
    words = (
        "--precision",
        "fp32",
        "--prune-at",
        "2",
        "--dialect",
        "portable",
        "--parity",
        "off",
        "--quiet",
    )
    output = run(checkpoint, job.bundle, *words)
    assert_refused(output, 3, "embed_tokens.npy: the disk is full", "again")
    assert not job.bundle.exists()
    assert finished_steps(partial) == {"processor"}
