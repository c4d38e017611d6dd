from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
import atp_export.engines as package
names = [f"atp_export.engines.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
for name in [*names, "atp_export.commands.engines"]:
    importlib.import_module(name)
heavy = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "onnxruntime"}
libraries = {"tensorrt", "tensorrt_rtx", "polygraphy"}
assert len(names) > 10, names
print(sorted((heavy | libraries) & sys.modules.keys()))
"""


def test_neither_pytorch_nor_onnx_nor_tensorrt_is_needed_until_something_is_built() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"


def test_options_cost_nothing_to_import() -> None:
    script = (
        "import sys, atp_export.engines.options\n"
        "print(sorted({'numpy', 'rich', 'tensorrt', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
