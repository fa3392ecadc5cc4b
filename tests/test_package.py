"""The package as a user meets it: importing, the wheel, the sdist."""

import ast
import json
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests import ROOT

CORE = {"torch", "timm", "huggingface_hub", "safetensors", "numpy"}


# What is true of the very first import, and afterwards of all names and modules, in one process.
FIRST_IMPORT = """
import json, logging, socket, warnings
warnings.simplefilter("error", UserWarning)
import timm, torch
handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
models = len(timm.list_models("hybridhash*"))
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = refuse
import hybridhash, importlib, inspect, pkgutil
importlib.import_module("hybridhash")
found = {
    "models": [models, len(timm.list_models("hybridhash*"))],
    "gpu": torch.cuda.is_initialized(),
    "logging": (list(logging.getLogger().handlers), logging.getLogger().level) == (handlers, level),
    "rooms": [getattr(hybridhash, room).__name__ for room in ROOMS],
    "missing": [name for name in hybridhash.__all__ if getattr(hybridhash, name) is None],
}
try:
    hybridhash.no_such_name
except AttributeError as error:
    found["error"] = str(error)
modules = [module.name for module in pkgutil.walk_packages(hybridhash.__path__, "hybridhash.")]
places = [module.rpartition(".") for module in modules if importlib.import_module(module)]
found["hidden"] = [
    f"{parent}.{name}"
    for parent, _, name in places
    if not inspect.ismodule(getattr(importlib.import_module(parent), name))
]
print(json.dumps(found))
"""
ROOMS = ["data", "encoding", "eval", "export", "hub", "losses", "models", "search", "shallow"]


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, "-c", f"ROOMS = {ROOMS}\n{FIRST_IMPORT}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_importing_registers_every_model_once_and_in_silence(found):
    assert found["models"] == [0, 15]


def test_importing_opens_no_socket_and_no_gpu_and_leaves_logging_alone(found):
    assert not found["gpu"]
    assert found["logging"]


def module_level_imports(path):
    """Top-level names that must be there when the module is imported."""
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
        elif isinstance(node, ast.Try) and "ImportError" in ast.unparse(node.handlers[0]):
            continue  # an extra that is used if it is there
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", sorted((ROOT / "hybridhash").rglob("*.py")), ids=lambda p: p.stem)
def test_modules_import_core_dependencies_only(path):
    foreign = set(module_level_imports(path)) - CORE - sys.stdlib_module_names - {"hybridhash"}
    assert foreign == set()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # Built from a copy of what git would ship, so that leftovers of the working tree cannot hide a gap.
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode != 0:
        pytest.skip("not a git checkout")
    source = tmp_path_factory.mktemp("source")
    for name in files.stdout.splitlines():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    modules = {name for name in files.stdout.splitlines() if re.fullmatch(r"hybridhash/.*\.py", name)}
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz")), modules


def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, _, modules = distributions
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hybridhash"}
    package = {name for name in names if name.startswith("hybridhash/")}
    weights = "hybridhash/models/weights/hybridhash_nano.copies.safetensors"
    assert package == modules | {"hybridhash/py.typed", weights}


def test_the_wheel_depends_on_the_core_only(distributions):
    wheel, _, _ = distributions
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
    required = [line.split(": ", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    core = {line.split(">")[0].strip() for line in required if "extra ==" not in line}
    assert {name.replace("-", "_") for name in core} == CORE


def test_the_sdist_builds_and_carries_licence_and_readme(distributions):
    _, sdist, _ = distributions
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "setup.cfg", "pyproject.toml", "hybridhash/__init__.py"} <= names


def test_every_public_name_is_there(found):
    assert found["missing"] == []
    assert "has no attribute 'no_such_name'" in found["error"]


def test_every_room_is_there_after_importing_the_package(found):
    assert found["rooms"] == [f"hybridhash.{room}" for room in ROOMS]


def test_functions_and_modules_have_different_names(found):
    assert found["hidden"] == []
