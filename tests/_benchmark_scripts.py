"""Import a script of benchmarks/, with what stands beside it."""

import importlib.util
import sys

from tests import ROOT

FOLDER = ROOT / "benchmarks"


def load_benchmark(name):
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module
