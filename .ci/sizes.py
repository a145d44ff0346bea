"""Prints what is larger than we aim at: modules over 300 code lines, functions over 40.

Never fails: a long table may be right, and the list is for the reader of a change.
"""

# ruff: noqa: T201 - prints for a person

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES = 300
FUNCTION_LINES = 40


def code_lines(source: str, tree: ast.AST) -> int:
    """Lines that are neither blank, comment nor docstring."""
    documents = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    return sum(1 for at, one in lines if one.strip() and one.strip()[0] != "#" and at not in documents)


def oversized(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    if (size := code_lines(source, tree)) > MODULE_LINES:
        yield f"{path}: {size} code lines (aim: {MODULE_LINES})"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > FUNCTION_LINES:
                where = f"{path}:{node.lineno} {node.name}"
                yield f"{where}: {size} lines (aim: {FUNCTION_LINES})"


def main() -> None:
    files = [file for root in sys.argv[1:] for file in sorted(Path(root).rglob("*.py"))]
    found = [line for file in files for line in oversized(file)]
    print(*found or ["nothing is larger than we aim at"], sep="\n")


if __name__ == "__main__":
    main()
