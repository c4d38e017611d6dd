import json
import os
import subprocess
import sys
from pathlib import Path

import atp_runtime

FORBIDDEN = (
    "torch",
    "transformers",
    "onnx",
    "atp_export",
    "atp_models",
    "atp_calibration",
)
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import atp_runtime
names = [module.name for module in pkgutil.walk_packages(atp_runtime.__path__, "atp_runtime.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted(sys.modules)]))
"""


def imported_by_all_modules() -> tuple[list[str], list[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    names, loaded = json.loads(run.stdout)
    return names, loaded


def test_runtime_brings_in_no_training_or_export_package_when_all_of_it_is_imported() -> None:
    names, loaded = imported_by_all_modules()
    files = Path(atp_runtime.__file__).parent.rglob("*.py")
    modules = [file for file in files if file.name not in ("__init__.py", "__main__.py")]
    assert len(names) >= len(modules)
    assert not set(FORBIDDEN) & set(loaded)
