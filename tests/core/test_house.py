"""The plan of rooms, read off the syntax trees: no circles, few doors, narrow arguments, one home
each.
"""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "ddpm_lib"
MODULES = {
    ".".join(("ddpm_lib", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(SOURCE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(tree: ast.Module) -> set[str]:
    """The modules of the library that a module names in any import: at its top, in a function or
    for types.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found & MODULES.keys()


GRAPH = {name: imported(tree) - {name} for name, tree in TREES.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Kosaraju)."""
    order: list[str] = []
    seen: set[str] = set()

    def finish(name: str, edges: dict[str, set[str]], into: list[str]) -> None:
        stack = [(name, iter(sorted(edges[name])))]
        seen.add(name)
        while stack:
            rest = stack[-1][1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                into.append(stack.pop()[0])
            else:
                seen.add(following)
                stack.append((following, iter(sorted(edges[following]))))

    for name in graph:
        if name not in seen:
            finish(name, graph, order)
    reverse: dict[str, set[str]] = defaultdict(set)
    for name, others in graph.items():
        for other in others:
            reverse[other].add(name)
    seen.clear()
    found = []
    for name in reversed(order):
        if name not in seen:
            part: list[str] = []
            finish(name, reverse, part)
            found += [sorted(part)] if len(part) > 1 else []
    return found


def test_the_search_for_circles_finds_them():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}
    assert circles(graph) == [["a", "b", "c"]]


def test_no_module_imports_itself_by_a_detour():
    assert circles(GRAPH) == []


def test_few_doors_and_few_layers():
    doors = [p.name for p in SOURCE.iterdir() if p.name != "__pycache__"]
    assert len(doors) <= 26, sorted(doors)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert len(layers) <= 10
    rooms = {room.strip() for layer in layers for room in layer.split("|")}
    assert rooms == {
        name.removesuffix(".py") for name in doors if not name.startswith(("__", "py."))
    }


@pytest.mark.parametrize("library", ["accelerate", "torch.distributed"])
def test_processes_are_met_in_one_room(library):
    """Only runtime/ imports them; types, which cost nothing, may be named elsewhere."""
    users = set()
    for name, tree in TREES.items():
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in for_types:
                continue
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(m == library or m.startswith(f"{library}.") for m in modules):
                users.add(name.split(".")[1])
    assert users <= {"runtime"}


def annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [ast.unparse(a.annotation) for a in every if a.annotation is not None]


def test_only_the_trainer_knows_the_trainer():
    takers = [
        f"{name}:{node.name}"
        for name, tree in TREES.items()
        if name != "ddpm_lib.training.trainer"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("Trainer" in text.replace("TrainerView", "") for text in annotations(node))
    ]
    assert takers == []


def test_the_process_is_composed():
    from torch import nn

    from ddpm_lib import GaussianDiffusion

    assert GaussianDiffusion.__mro__ == (GaussianDiffusion, *nn.Module.__mro__)
