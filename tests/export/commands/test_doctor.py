"""`atp-export doctor`: what is printed."""

from __future__ import annotations

from tests.export.command_line import Run


def test_the_doctor_reports_as_text_and_as_a_document(run: Run) -> None:
    assert "✓ Python" in run("doctor").out
    subjects = [finding["subject"] for finding in run("doctor", "--json").document]
    assert subjects[0] == "Python"
