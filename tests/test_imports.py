"""Imports run one way, and heavy libraries are loaded only where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lgjax"
# what each part of the package may import, besides itself
ALLOWED = {
    "config": set(),
    "models": {"config"},
    "losses": {"config", "models"},
    "text": {"config"},
    "data": {"config", "draw", "models", "text"},
    "llm": set(),
    "annotate": {"config", "data", "draw", "llm", "text"},
    "parallel": {"config", "models"},
    "convert": {"config", "models", "parallel", "text"},
    "infer": {"config", "models", "parallel", "text", "data", "convert", "draw"},
    "train": {"config", "data", "losses", "models", "parallel", "convert", "infer", "text", "draw"},
    "eval": {"config", "convert", "data", "infer", "llm", "text", "draw", "parallel"},
    "jobs": {"config", "convert", "infer", "models", "parallel", "text", "train"},
    "bench": {"config", "convert", "data", "infer", "losses", "models", "parallel", "train"},
    "draw": {"text"},
    "terminal": {"config", "convert", "data", "draw", "infer", "parallel"},
    "serve": {"config", "data", "draw", "infer", "text"},
    "cli": {"terminal", "annotate", "bench", "convert", "data", "eval", "infer", "jobs", "serve", "train"},
    "__main__": {"cli"},
    "__init__": {"infer", "config"},
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_parts(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lgjax":
            pieces = node.module.split(".")
            names |= {pieces[1]} if len(pieces) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lgjax.")}
    return names - {"__version__"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} has no entry in the table of this test"
    extra = imported_parts(ast.parse(path.read_text())) - ALLOWED[part] - {part}
    assert not extra, f"{part} must not import {sorted(extra)}"


def test_help_loads_no_heavy_library():
    code = (
        "import sys\nfrom lgjax.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'flax', 'torch', 'transformers', 'orbax', 'grain', 'tensorflow_datasets'}\n"
        "heavy |= {'openai'}\n"
        "heavy |= {'fastapi', 'gradio', 'pydantic', 'uvicorn'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert "chat" in done.stdout and "convert" in done.stdout
