"""The layout: which folder may import which, and importing has no effect."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

FOLDERS = ["common", "audio", "dataset", "training", "evaluation"]  # each may import those before it
COMMANDS = {path.stem for path in ROOT.glob("*.py")}
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_the_folders_before_it(folder):
    allowed = set(FOLDERS[: FOLDERS.index(folder) + 1])
    for path in (ROOT / folder).glob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & COMMANDS, f"{path} imports a command"
        assert roots & set(FOLDERS) <= allowed, f"{path} imports upward"


def test_there_are_no_import_cycles():
    modules = {module_of(path): path for path in SOURCES}
    TopologicalSorter({name: imports(path) & set(modules) - {name} for name, path in modules.items()}).prepare()


def test_the_model_imports_only_torch():
    roots = {name.split(".")[0] for name in imports(ROOT / "model_simple_transformer.py")}
    assert "torch" in roots and not roots & (set(FOLDERS) | COMMANDS)


def test_importing_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(map(module_of, SOURCES))}"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == "" and list(tmp_path.iterdir()) == []
