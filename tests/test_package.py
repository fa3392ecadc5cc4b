"""The package as a user meets it: importing, the wheel, the sdist."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests import ROOT

CORE = {"torch", "timm", "huggingface_hub", "safetensors", "numpy"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_registers_every_model_once_and_in_silence():
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        "import timm; before = timm.list_models('hybridhash*')\n"
        "import hybridhash, importlib; importlib.import_module('hybridhash')\n"
        "print(len(before), len(timm.list_models('hybridhash*')))"
    )
    result = run(code)
    assert result.stdout.split() == ["0", "15"]
    assert result.stderr == ""


def test_importing_opens_no_socket_and_no_gpu_and_leaves_logging_alone():
    code = (
        "import logging, socket, timm, torch\n"
        "handlers, level = list(logging.getLogger().handlers), logging.getLogger().level\n"
        "def refuse(*args, **kwargs): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import hybridhash\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert (list(logging.getLogger().handlers), logging.getLogger().level) == (handlers, level)"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


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


def test_every_public_name_is_there():
    code = "import hybridhash\nprint([n for n in hybridhash.__all__ if getattr(hybridhash, n) is None])"
    assert run(code).stdout.strip() == "[]"
    assert "has no attribute 'no_such_name'" in run("import hybridhash; hybridhash.no_such_name").stderr


ROOMS = ["data", "encoding", "eval", "export", "hub", "losses", "models", "search", "shallow"]


def test_every_room_is_there_after_importing_the_package():
    code = f"import hybridhash\nfor room in {ROOMS}: print(getattr(hybridhash, room).__name__)"
    result = run(code)
    assert result.stdout.split() == [f"hybridhash.{room}" for room in ROOMS], result.stderr


def test_functions_and_modules_have_different_names():
    code = (
        "import importlib, inspect, pkgutil, hybridhash\n"
        "modules = [module.name for module in pkgutil.walk_packages(hybridhash.__path__, 'hybridhash.')]\n"
        "for module in modules: importlib.import_module(module)\n"
        "for module in modules:\n"
        "    parent, _, name = module.rpartition('.')\n"
        "    if not inspect.ismodule(getattr(importlib.import_module(parent), name)): print(module)"
    )
    result = run(code)
    assert (result.stdout, result.stderr) == ("", "")
