"""What sparing visual tokens work saves, by YOPO's formula and as the graphs compute it."""

from __future__ import annotations

from dataclasses import dataclass

from atp_export.manifest_writer import text_model
from atp_export.plan import ExportPlan
from atp_runtime.structure import FAST, Structure
from atp_runtime.structure_work import PrefillRows, paper_flops, structured_flops


@dataclass(frozen=True)
class StructureFlops:
    """Floating-point operations of the visual tokens of one image, none of them dropped before.

    Attributes:
        formula: By the paper's formula.
        formula_whole: Likewise, of the model as it is.
        counted: Of the matrix products in the graphs.
        counted_whole: Likewise, of the model as it is.
    """

    formula: float
    formula_whole: float
    counted: int
    counted_whole: int

    def lines(self) -> tuple[str, str]:
        """Both, for people."""
        formula = _share(self.formula, self.formula_whole)
        counted = _share(self.counted, self.counted_whole)
        return (
            f"FLOPs of an image's visual tokens by YOPO's formula: {formula}",
            f"FLOPs of an image's visual tokens in these graphs: {counted}",
        )


def structure_flops(plan: ExportPlan) -> StructureFlops | None:
    """What a plan's structure saves; None without one."""
    structure, vision = plan.structure, plan.spec.vision
    if structure is None:
        return None
    text = text_model(plan.spec.text, plan.axes["tokens"].maximum)
    visual = vision.tokens - vision.prefix_tokens
    rows, layers = PrefillRows(visual, 0), range(text.layers)
    whole = structured_flops(text, Structure(), vision.grid, layers, rows)
    counted = whole
    if structure.mode == FAST:
        covered = [layer for layer in layers if structure.covers(layer)]
        counted = structured_flops(text, structure, vision.grid, covered, rows)
    return StructureFlops(
        paper_flops(text, visual, structure), paper_flops(text, visual), counted, whole
    )


def _share(part: float, whole: float) -> str:
    return f"{part / 1e12:.2f} of {whole / 1e12:.2f} T ({100 * part / whole:.1f} %)"
