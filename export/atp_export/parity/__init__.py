"""Parity: whether a bundle computes what its checkpoint does."""

from __future__ import annotations

from atp_export.parity.report import ParityReport
from atp_export.parity.run import run_parity
from atp_export.parity.tree import render_tree

__all__ = ["ParityReport", "render_tree", "run_parity"]
