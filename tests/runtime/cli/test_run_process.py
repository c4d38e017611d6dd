"""`atp-run` in a process of its own: what it loads and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.runtime.cli.command_line import SHORT


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


LOADED_BY_HELP = """
import json, sys
from atp_runtime.cli.run import main
try:
    main(["--help"])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_help_is_printed_without_loading_what_the_work_needs() -> None:
    words = [sys.executable, "-c", LOADED_BY_HELP]
    run = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stderr)}
    assert "--show-pruning" in run.stdout
    assert not loaded & {"numpy", "onnxruntime", "PIL", "tokenizers", "safetensors", "jinja2"}


def start(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "atp_runtime.cli.run", *map(str, words)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_answer_streams_and_ends_with_130_when_ctrl_c_comes(tiny_bundle: Path) -> None:
    with start(tiny_bundle, "What?", "--max-new-tokens", "2000", "--threads", "1") as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"atp-run: interrupted" in err
    assert b"Traceback" not in err


def test_chat_ends_with_130_when_ctrl_c_comes_between_questions(tiny_bundle: Path) -> None:
    with start(tiny_bundle, "--chat", *SHORT) as process:
        process.stdin.write(b"What?\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_answer_ends_quietly_when_its_reader_goes_away(tiny_bundle: Path) -> None:
    with start(tiny_bundle, "What?", "--max-new-tokens", "2000", "--quiet") as process:
        assert process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")
