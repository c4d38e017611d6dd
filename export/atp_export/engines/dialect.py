"""Which of a bundle's graphs engines are built from."""

from __future__ import annotations

from atp_runtime.errors import InputError
from atp_runtime.manifest import NATIVE, PORTABLE, Manifest


def choose_dialect(manifest: Manifest, *, has_native: bool, wanted: str | None = None) -> str:
    """Native where it can be built, else portable.

    TensorRT-RTX 1.7.1 has no fused kernel for attention in FP32, so that the native graph would
    gain nothing: FP32 bundles are built from the portable one unless told otherwise.

    Args:
        manifest: The bundle's.
        has_native: Whether TensorRT has the native dialect's operators.
        wanted: Of the command line; None to choose.

    Raises:
        InputError: TensorRT lacks the operators of the wanted dialect, or of all there are.
    """
    if wanted == NATIVE and not has_native:
        raise InputError(
            "--dialect native",
            why="this TensorRT lacks fused attention and rotary embedding; 10.15 has them.",
            fix="leave the option away, or update TensorRT.",
        )
    if wanted is not None:
        return wanted
    order = (PORTABLE, NATIVE) if manifest.precision == "fp32" else (NATIVE, PORTABLE)
    for name in order:
        if name in manifest.dialects and (has_native or name != NATIVE):
            return name
    raise InputError(
        f"the bundle's graphs are {' and '.join(manifest.dialects)} only",
        why="this TensorRT lacks their operators: fused attention and rotary embedding came "
        "with 10.15.",
        fix="export the bundle again with --dialect portable or both, or update TensorRT.",
    )
