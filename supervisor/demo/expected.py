"""What the demo must book, computed without it: `python -I expected.py < paths` (paths end with NUL), one JSON object out.

Imports the standard library alone and shares no code with the workflows, so that nothing of the engine, and no mistake
of theirs, can be on both sides of the equation. The rules that both follow are in README.md.
"""

import ast
import gc
import json
import sys
import warnings

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)
DECISIONS = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.comprehension, ast.BoolOp, ast.match_case,
)  # fmt: skip


def measured(source: bytes) -> tuple[int, int, int, int]:
    """lines, functions, complexity, imports of one file."""
    lines = len(source.split(b"\n")) - source.endswith(b"\n") if source else 0
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return lines, 0, 0, 0
    functions = decisions = imports = 0
    for node in ast.walk(tree):
        functions += isinstance(node, FUNCTIONS)
        decisions += isinstance(node, DECISIONS)
        imports += isinstance(node, IMPORTS)
    return lines, functions, functions + decisions, imports


def main() -> None:
    warnings.simplefilter("ignore")
    gc.disable()  # trees hold no cycles
    totals = [0, 0, 0, 0]
    files = 0
    for path in sys.stdin.buffer.read().split(b"\0")[:-1]:
        with open(path, "rb") as file:
            totals = [total + more for total, more in zip(totals, measured(file.read()), strict=True)]
        files += 1
    names = ("lines", "functions", "complexity", "imports")
    print(json.dumps({"files": files, "total": sum(totals), **dict(zip(names, totals, strict=True))}))


if __name__ == "__main__":
    main()
