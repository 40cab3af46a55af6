"""The package as a whole: what importing it does, and which way its imports point."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyshuffle
from pyshuffle.ops import jit

PACKAGE = Path(pyshuffle.__file__).parent


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, pyshuffle; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "numba", "llvmlite", "PIL"} & set(loaded)


@pytest.mark.parametrize("name", pyshuffle.__all__)
def test_every_name_is_there(name):
    assert getattr(pyshuffle, name) is not None


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pyshuffle.nothing


RANKS = [  # a module imports from rooms of its own or a higher number only
    {"accuracy", "export", "check"},
    {"report"},
    {"classify"},
    {"audit", "train", "gradcheck", "peers", "studies", "visualise", "explain", "trace"},
    {"training"},
    {"device", "plots", "run_files"},
    {"sgd", "sgd_cuda", "settings"},
    {"progress"},
    {"cli", "data", "weights"},
    {"experiments", "figures", "init", "image", "labels", "containers", "torchfile"},
    {"engine"},
    {"backends"},
    {"nets", "ops", "cuda"},
    {"bounds", "errors", "memory", "stopwatch", "streams", "tables", "types", "tiles"},
]
FLOOR = {name.removesuffix(".py") for name in jit.TILES}  # of the engine; all kernels may stand on them: a room of their own


def test_imports_point_one_way():
    rank = {room: number for number, rooms in enumerate(RANKS) for room in rooms}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        room = "tiles" if room == "engine" and path.stem in FLOOR else room
        room = path.stem if room == "cuda" and path.stem in ("check", "report") else room  # a command line
        if room.startswith("__"):  # the package and its program
            continue
        for target in imported_rooms(path, room):
            assert rank[target] >= rank[room], f"{path.name} of {room} imports {target}"
            assert {room, target} != {"nets", "ops"}, "nets and ops know nothing of each other"


def imported_rooms(path: Path, own: str) -> set[str]:
    """The rooms that a file imports at run time, by relative imports; what only a type checker sees is left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    depth = len(path.relative_to(PACKAGE).parts)  # so many dots lead to the package
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in typing_only and node.level == depth:
            room, _, module = (node.module or "").partition(".")
            rooms |= (
                {"tiles"} if room == "engine" and module in FLOOR else {room} if room else {alias.name for alias in node.names}
            )
    return rooms - {own}


def test_only_kernels_go_without_types():
    """mypy is told to let functions without types pass where kernels are, so that it would not see a public one there."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        functions = [node for scope in ast.walk(tree) if isinstance(scope, (ast.Module, ast.ClassDef)) for node in scope.body]
        for function in functions:
            if isinstance(function, ast.FunctionDef) and not function.decorator_list:
                assert function.returns, f"{path.name}: {function.name} has no types"
