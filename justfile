# Every task of the project; `just` alone lists them.

venv := justfile_directory() / ".venv"
bin := venv / "bin"
out := justfile_directory() / "demo-output"
bundle := out / "bundle"
photo := "from atp_models.demo import default_cache_dir, demo_photo; print(demo_photo(default_cache_dir()))"

# List the tasks
default:
    @just --list --unsorted

# Make .venv with pinned versions (does nothing when it is up to date)
setup:
    #!/usr/bin/env bash
    set -euo pipefail
    stamp="{{venv}}/.ready"
    if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then
        exit 0
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "setup: Python 3.11 or newer is needed, this is $(python3 --version)" >&2; exit 3; }
    [ -x "{{bin}}/python" ] || python3 -m venv "{{venv}}"
    echo "setup: installing pinned packages into .venv (torch first, a few minutes)" >&2
    "{{bin}}/python" -m pip install --quiet --constraint constraints.txt torch==2.13.0
    "{{bin}}/python" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
    touch "$stamp"

# Export a real checkpoint, ask about drawn scenes and a real photo, show what was pruned
demo: setup
    @echo "== 1. assemble a checkpoint from pretrained parts"
    {{bin}}/python -m atp_models.demo {{out}}/checkpoint
    @echo "== 2. compile it: segments cut at the pruning points, checked against PyTorch"
    {{bin}}/atp-export {{out}}/checkpoint {{bundle}} --precision fp32
    @echo "== 3. draw scenes that it has not seen, and ask one question of each kind"
    {{bin}}/python -m atp_models.demo.data scenes-test {{out}}/scenes --scenes 20 --questions 8
    {{bin}}/python -m atp_models.demo.show {{bundle}} {{out}}/scenes/scenes-test.json --pictures {{out}}/pruned
    @echo "== 4. ask about a photo, pruning between the segments"
    {{bin}}/atp-run {{bundle}} "What is on the table?" --image "$({{bin}}/python -c '{{photo}}')" \
        --max-new-tokens 24 --stats --show-pruning {{out}}/pruning.png
    @echo "== 5. ask without a photo"
    {{bin}}/atp-run {{bundle}} "What is the capital of France?" --stats

# Train the demo's projector, LoRA and pruning modules again (hours on a CPU; resumes)
train-demo: setup
    {{bin}}/python -m atp_models.demo.curriculum {{out}}/training

# Measure every published score of the demo again (hours on a CPU; resumes)
reproduce *arguments: setup
    {{bin}}/python -m tests.benchmarks.reproduce {{arguments}}

# Workers take whole files of tests, as fixtures of a file are dear. Each has one thread; the run ends if
# one of them crashes.
workers := "--numprocesses auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile"
pytest := "OMP_NUM_THREADS=1 " + bin / "python -m pytest " + workers

# Run the quick tests (about 10 minutes on two cores)
test: setup
    {{pytest}} -m "not slow"

# Run every test, the slow ones too
test-all: setup
    {{pytest}}

# Check style and types, as pre-commit does
lint: setup
    {{bin}}/ruff check
    {{bin}}/ruff format --check
    {{bin}}/mypy

# Measure speed and memory, print a table with ratios and write bench-output/*.json
bench *arguments: setup
    {{bin}}/python -m tests.benchmarks {{arguments}}

# Install libraries to compare with, each into an environment of its own in the user's cache (about 3.5 GB)
bench-peers-setup *peers: setup
    {{bin}}/python -m tests.benchmarks.peers.environments {{peers}}

# Compare with whichever of them is installed, in 5 minutes
bench-quick *arguments: setup
    {{bin}}/python -m tests.benchmarks peers --shape 135m --kept 1,0.25 --tokens 12 --rounds 1 --no-tower {{arguments}}

# Remove what the tasks made, the caches outside this directory excepted
clean:
    rm -rf .venv demo-output bench-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
