"""Imports run downward only, from room to room as the list below has them, and never in a circle.

The source is read, not run, so that imports inside functions count as those at the top of a file do, and so do names of
modules in strings, which `importlib` loads.
"""

import ast
import pathlib

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "glm_jax"
# From top to bottom: a room may import those below it. `__init__` and `__main__` name public things and verbs.
ROOMS = (
    "cli", "reports", "sweeps", "benchmarks", "tuning", "planning", "evaluation", "interop", "tasks", "training",
    "data", "config", "methods", "decoding", "corruption", "model", "distributed", "tokenizers", "files", "logs",
)  # fmt: skip


def module_name(path: pathlib.Path, root: pathlib.Path) -> str:
    """glm_jax/model/layers.py -> glm_jax.model.layers, glm_jax/model/__init__.py -> glm_jax.model"""
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(root: pathlib.Path) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports."""
    sources = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    imports: dict[str, set[str]] = {}
    for module, path in sources.items():
        targets = imports[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names if alias.name in sources}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module} has a relative import; the project writes them out"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    targets |= {full if full in sources else node.module} & set(sources)
            elif isinstance(node, ast.Constant) and node.value in set(sources) - {root.name}:
                targets.add(node.value)
        targets -= {module}
    return imports


def room(module: str) -> str:
    """glm_jax.model.layers -> model; "" for the package itself and its entry point."""
    parts = module.split(".")
    return "" if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Every import of a room by one below it, as "module imports module"."""
    rank = {name: number for number, name in enumerate(ROOMS)}
    return [
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in sorted(targets)
        if room(module) and (not room(target) or rank[room(target)] < rank[room(module)])
    ]


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Every group of modules that reach each other, as "a, b, c"."""

    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for target in imports[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    reach = {module: reached(module) for module in imports}
    looped = [module for module in imports if module in reach[module]]
    groups = {frozenset(other for other in reach[module] if module in reach[other]) for module in looped}
    return sorted(", ".join(sorted(group)) for group in groups)


def test_every_folder_is_a_room_with_a_place():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__", "__main__"} == set(ROOMS)


def test_few_files_stand_at_the_root():
    assert len([path for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__")]) <= 4


def test_imports_run_downward():
    assert upward(read_imports(PACKAGE)) == []


def test_imports_have_no_circles():
    assert circles(read_imports(PACKAGE)) == []


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changed", "line", "fault"),
    [
        ("model/losses.py", "from glm_jax.training import optimizer", "upward"),
        ("files.py", "def f():\n    import glm_jax.config", "upward"),
        ("model/ops.py", "from glm_jax import GLM", "upward"),  # the package's public names are for users
        ("model/ops.py", "from glm_jax.model import transformer", "circle"),
        ("model/batch.py", "def f():\n    from glm_jax.model.transformer import GLM", "circle"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path, changed, line, fault):
    root = tmp_path / "glm_jax"
    for path in PACKAGE.rglob("*.py"):
        copy = root / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + (f"\n{line}\n" if path == PACKAGE / changed else ""))
    before, after = read_imports(PACKAGE), read_imports(root)
    check = upward if fault == "upward" else circles
    assert len(set(check(after)) - set(check(before))) == 1
