"""Which backend runs a bundle, as `atp-run` and `atp-eval` ask for it.

Nothing is imported for it, so that `--help` is instant.
"""

from __future__ import annotations

import argparse

# As atp_runtime.backends.BACKENDS, whose import takes NumPy's time.
_NAMES = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")


def add_backend_options(group: argparse._ActionsContainer) -> None:
    """Adds `--backend`, `--threads` and `--no-cuda-graph` to a parser or to a group of it."""
    group.add_argument(
        "--backend",
        choices=_NAMES,
        default=_NAMES[0],
        help="what runs the bundle: ONNX Runtime on the CPU (default) or with its CUDA or TensorRT "
        "provider, or TensorRT with engines that atp-export engines built on this machine",
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: one per core)"
    )
    group.add_argument(
        "--no-cuda-graph",
        dest="cuda_graphs",
        action="store_false",
        help="enqueue every decode step anew instead of recording it as CUDA graphs; only "
        "--backend tensorrt records any",
    )


def add_nvtx_option(group: argparse._ActionsContainer) -> None:
    """Adds `--nvtx` to a parser or to a group of it."""
    group.add_argument(
        "--nvtx",
        action="store_true",
        help="mark the parts of answers as NVTX ranges, for nsys profile; needs the package nvtx",
    )
