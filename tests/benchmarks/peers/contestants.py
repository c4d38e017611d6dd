"""Who is compared, what each reads, and in which precisions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.peers.environments import interpreter, missing
from tests.benchmarks.peers.llama_gguf import write_gguf
from tests.benchmarks.workbench import OUTPUT, ROOT

from atp_runtime.errors import CheckFailedError

DRIVERS = Path(__file__).parent / "drivers"
PRECISIONS = ("fp32", "fp16", "int8")
"""fp32: everything is FP32. fp16 and int8: that is how weights are stored, and the rest is as the
library has it for such weights."""

Make = Callable[[Path, Path, str], object]
"""Writes an artefact: from a LlamaForCausalLM directory, to a path, in a precision."""


@dataclass(frozen=True)
class Peer:
    """Another library.

    Attributes:
        name: As users know it.
        driver: The script that runs it.
        suffix: Of its artefact's name.
        make: Writes its artefact; None if it reads the checkpoint as it is.
        lacking: Why it cannot be run in a precision.
        environment: Whether it has one of its own; otherwise it is run by this interpreter.
    """

    name: str
    driver: str
    suffix: str
    make: Make | None
    lacking: Mapping[str, str]
    environment: bool = True

    @property
    def command(self) -> tuple[str, ...]:
        """What starts its driver."""
        python = interpreter(self.name) if self.environment else Path(sys.executable)
        return (str(python), str(DRIVERS / self.driver))

    def reason(self, precision: str) -> str | None:
        """Why it cannot be run in a precision; None if it can."""
        absent = missing(self.name) if self.environment else None
        return self.lacking.get(precision) or absent


OURS = "this runtime"
OUR_COMMAND = (sys.executable, str(DRIVERS / "runtime_driver.py"))


def peer_environment(*, ours: bool, threads: int) -> dict[str, str]:
    """Variables for a driver: this repository's packages for its own, none of them for a peer."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if ours:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    return variables | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def _make_openvino(source: Path, target: Path, precision: str) -> None:
    tool = str(interpreter("openvino-genai").with_name("optimum-cli"))
    words = ("--task", "text-generation-with-past", "--weight-format", precision, str(target))
    _export("openvino-genai", tool, "export", "openvino", "--model", str(source), *words)


def _make_onnxruntime_genai(source: Path, target: Path, precision: str) -> None:
    words = ("-i", str(source), "-o", str(target), "-p", precision, "-e", "cpu")
    cache = ("-c", str(target.with_name("builder-cache")))
    python = str(interpreter("onnxruntime-genai"))
    _export("onnxruntime-genai", python, "-m", "onnxruntime_genai.models.builder", *words, *cache)


def _export(name: str, *command: str) -> None:
    log = OUTPUT / f"export-{name}.log"
    variables = peer_environment(ours=False, threads=os.cpu_count() or 1)
    with log.open("wb") as output:
        done = subprocess.run(
            command, check=False, stdout=output, stderr=subprocess.STDOUT, env=variables
        )
    if done.returncode:
        raise CheckFailedError(
            f"{name}: exporting ended with {done.returncode}",
            why=last_line(log.read_text(errors="replace")),
            fix=f"see {log}",
        )


def last_line(text: str) -> str:
    """What a program said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


PEERS = (
    Peer(
        "Transformers",
        "transformers_driver.py",
        "",
        None,
        {"int8": "has no 8-bit weights on a CPU without another library"},
        environment=False,
    ),
    Peer("llama.cpp", "llama_cpp_driver.py", ".gguf", write_gguf, {}),
    Peer("openvino-genai", "openvino_genai_driver.py", "", _make_openvino, {}),
    Peer(
        "onnxruntime-genai",
        "onnxruntime_genai_driver.py",
        "",
        _make_onnxruntime_genai,
        {"fp16": "the FP16 model that its builder makes ends with an error on the CPU"},
    ),
)
