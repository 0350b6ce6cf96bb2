"""What the demo must book, computed without it: `python -I expected.py < paths` (paths end with NUL), one JSON object out.

Imports the standard library alone and shares no code with the workflows, so that nothing of the engine, and no mistake
of theirs, can be on both sides of the equation. The rules that both follow are in README.md.
"""

import ast
import gc
import json
import sys
import warnings

FUNCTION, DECISION, IMPORT = (1, 1, 0), (0, 1, 0), (0, 0, 1)  # what one node adds to functions, complexity, imports
ADDS: dict[type[ast.AST], tuple[int, int, int]] = {
    **dict.fromkeys((ast.FunctionDef, ast.AsyncFunctionDef), FUNCTION),
    **dict.fromkeys((ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.comprehension, ast.match_case), DECISION),
    **dict.fromkeys((ast.ExceptHandler, ast.Assert, ast.BoolOp), DECISION),
    **dict.fromkeys((ast.Import, ast.ImportFrom), IMPORT),
}
LEAVES = (ast.Name, ast.Constant, ast.alias, ast.Import, ast.ImportFrom, ast.Pass)  # nothing below them counts


def measured(source: bytes) -> tuple[int, int, int, int]:
    """lines, functions, complexity, imports of one file."""
    lines = len(source.split(b"\n")) - source.endswith(b"\n") if source else 0
    try:
        rest: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return lines, 0, 0, 0
    functions = complexity = imports = 0
    while rest:
        node = rest.pop()
        adds = ADDS.get(type(node))
        if adds is not None:
            functions, complexity, imports = functions + adds[0], complexity + adds[1], imports + adds[2]
        if isinstance(node, LEAVES):
            continue
        for below in vars(node).values():
            if isinstance(below, ast.AST):
                rest.append(below)
            elif isinstance(below, list):
                rest.extend(each for each in below if isinstance(each, ast.AST))
    return lines, functions, complexity, imports


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
