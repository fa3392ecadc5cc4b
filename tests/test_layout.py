"""The rooms: imports point down only, and public names that moved are found where they were."""

import ast
import importlib

import pytest

from tests import ROOT

PACKAGE = ROOT / "hybridhash"

# Each room may import itself, the rooms of the lines above its own, and the private modules of the root.
FLOORS = [
    {"labels"},
    {"codes"},
    {"asymmetric", "data", "pairs", "shallow"},
    {"eval", "losses", "search"},
    {"models"},
    {"encoding"},
    {"duplicates", "embeddings", "export", "hub"},
    {"binarization"},
]
ALIASES = {"bits", "images", "shards"}


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hybridhash"):
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "hybridhash" else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hybridhash."))


def test_every_room_has_a_floor():
    rooms = {room_of(name) for name, _ in modules()} - {""} - ALIASES
    assert {room for room in rooms if not room.startswith("_")} == set().union(*FLOORS)


def test_imports_point_down_only():
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    upward = [
        f"{name} imports {target}"
        for name, tree in modules()
        if room_of(name) in floor
        for target in imported(tree)
        if room_of(target) in floor
        and room_of(target) != room_of(name)
        and floor[room_of(target)] >= floor[room_of(name)]
    ]
    assert upward == []


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("hybridhash.bits", "unpack_codes", "hybridhash.codes"),
        ("hybridhash.bits", "unpack_bits", "hybridhash._hamming"),
        ("hybridhash.images", "read_image", "hybridhash.data"),
        ("hybridhash.images", "TarImages", "hybridhash.data"),
        ("hybridhash.shards", "open_codes", "hybridhash.encoding"),
        ("hybridhash.shards", "read_failures", "hybridhash.encoding"),
        ("hybridhash.eval", "get_protocol", "hybridhash.data"),
        ("hybridhash.eval", "Split", "hybridhash.data"),
        ("hybridhash.eval", "read_csv", "hybridhash.data"),
        ("hybridhash.losses", "balanced_batches", "hybridhash.data"),
        ("hybridhash.images", "to_rgb", "hybridhash.data"),
        ("hybridhash.models", "KSH", "hybridhash.shallow"),
        ("hybridhash.models", "itq_rotation", "hybridhash.shallow"),
    ],
)
def test_names_that_moved_are_found_with_a_warning(old, name, new):
    with pytest.deprecated_call(match=f"{old}.{name} is now {new}.{name}"):
        found = getattr(importlib.import_module(old), name)
    assert found is getattr(importlib.import_module(new), name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hybridhash.eval.Parts", "hybridhash.data.SplitDatasets"),
        ("hybridhash.eval.own_protocol", "hybridhash.data.custom_protocol"),
    ],
)
def test_names_that_changed_are_found_with_a_warning(old, new):
    def find(path):
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)

    with pytest.deprecated_call(match=f"{old} is now {new}"):
        found = find(old)
    assert found is find(new)
