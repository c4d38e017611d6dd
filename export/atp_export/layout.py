"""Where the files of a bundle lie, relative to its directory."""

from __future__ import annotations

GRAPH_DIRECTORY = "onnx"
# Beside the graphs, because a tied LM head refers to it and ONNX Runtime follows no path that
# leaves the graph's directory.
EMBEDDING_FILE = f"{GRAPH_DIRECTORY}/embed_tokens.npy"
PROCESSOR_DIRECTORY = "processor"
PRUNING_FILE = "pruning/atp_modules.safetensors"
PARITY_REPORT = "reports/parity.json"
EXPORT_REPORT = "reports/export.json"
CHECK_REPORT = "reports/check.json"


def graph_file(stage: str, dialect: str = "") -> str:
    """The ONNX file of a stage; of another dialect than the bundle's first, by its name."""
    return f"{GRAPH_DIRECTORY}/{stage}{'.' if dialect else ''}{dialect}.onnx"


def data_file(stage: str) -> str:
    """The weights of a stage."""
    return f"{GRAPH_DIRECTORY}/{stage}.data"
