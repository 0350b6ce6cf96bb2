"""The types that users see, as mypy (strict) and pyright (strict) understand them.

Every other file of this folder is a case. A comment says what a checker must find on its line, and nothing else may
be found anywhere:

    reveal_type(x)  # R: str                         both reveal this type, written without modules
    bad()           # E: arg-type reportArgumentType both find an error; mypy's code and pyright's rule are among those found
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CASES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py" and not path.name.startswith("test_"))
COMMENT = re.compile(r"#\s*(?P<kind>[ER]): (?P<what>.+)$")

Found = dict[str, dict[int, list[tuple[str, str]]]]  # file → line → [(E, code) or (R, type)]

in_clone = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="the tests run apart from the clone")


def run(*command: object) -> str:
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def by_mypy() -> Found:
    found: Found = {}
    for line in run("mypy", "--strict", "--output=json", "--hide-error-context", *CASES).splitlines():
        report = json.loads(line)
        name, message = Path(report["file"]).name, report["message"]
        if report["severity"] == "error":
            note(found, name, report["line"], "E", report["code"])
        elif match := re.match(r'Revealed type is "(.*)"$', message):
            note(found, name, report["line"], "R", plain(match[1]))
    return found


def by_pyright() -> Found:
    found: Found = {}
    for report in json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, "-p", FOLDER))["generalDiagnostics"]:
        name, line = Path(report["file"]).name, report["range"]["start"]["line"] + 1
        if report["severity"] == "error":
            note(found, name, line, "E", report.get("rule", report["message"]))
        elif match := re.match(r'Type of ".*" is "(.*)"$', report["message"], re.DOTALL):
            note(found, name, line, "R", plain(match[1]))
    return found


CHECKERS = {"mypy": by_mypy, "pyright": by_pyright}


def note(found: Found, name: str, line: int, kind: str, what: str) -> None:
    found.setdefault(name, {}).setdefault(line, []).append((kind, what))


def plain(shown: str) -> str:
    """One spelling for both checkers: no modules, `(a: int)` for a list of parameters, `...` for a default."""
    shown = re.sub(r"\b(?:\w+\.)+(?=\w)", "", shown)
    shown = re.sub(r"(\w+)\[\[(.*?)\], ", r"\1[(\2), ", shown)
    shown = re.sub(r" =( [^,)]+)?(?=[,)])", " = ...", shown)
    return shown.replace("CoroutineType[", "Coroutine[")


def expected(case: Path) -> dict[int, tuple[str, str]]:
    comments = ((number, COMMENT.search(line)) for number, line in enumerate(case.read_text().splitlines(), 1))
    return {number: (match["kind"], match["what"].strip()) for number, match in comments if match}


@pytest.fixture(scope="module", params=list(CHECKERS))
def checker(request: pytest.FixtureRequest) -> tuple[str, Found]:
    """A checker's name and all that it found, in one run over all cases."""
    pytest.importorskip(request.param)
    return request.param, CHECKERS[request.param]()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_checker_finds_what_the_comments_say(checker: tuple[str, Found], case: Path) -> None:
    """A wrong call is an error at its line, a right one has an exact type: before anything runs."""
    name, found = checker
    lines, wanted = found.get(case.name, {}), expected(case)
    for number in sorted(lines.keys() | wanted.keys()):
        what = lines.get(number, [])
        kind, text = wanted.get(number, ("nothing", ""))
        if kind == "E":
            mypy_code, pyright_rule = text.split()
            assert ("E", mypy_code if name == "mypy" else pyright_rule) in what, f"{case.name}:{number}: expected {text}, {name} found {what}"
        else:
            assert what == ([("R", text)] if kind == "R" else []), f"{case.name}:{number}: expected {kind} {text}, {name} found {what}"


def test_every_case_expects_types_and_errors() -> None:
    """A comment that is not recognised would check nothing."""
    for case in CASES:
        kinds = [kind for kind, _ in expected(case).values()]
        assert "E" in kinds and "R" in kinds, case.name
        assert case.read_text().count("reveal_type(") == kinds.count("R"), case.name


@in_clone
def test_package_is_strict() -> None:
    """`mypy` over the package, as pyproject.toml configures it."""
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_for_checkers_are_the_names_at_run_time() -> None:
    """`from supervisor import …` is lazy: what a type checker sees stands apart from what happens, and must not differ."""
    import supervisor.api

    tree = ast.parse(Path(supervisor.api.__file__).read_text())
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    static = {name.asname for node in branch.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert static == set(vars(supervisor.api)["__all__"])
    assert set(dir(supervisor)) == static
    everything: dict[str, object] = {}
    exec("from supervisor import *", everything)
    assert everything.keys() - {"__builtins__"} == static, "what a checker takes to be there is there"


def test_package_says_that_it_is_typed() -> None:
    """Without the marker an installed package is untyped for every checker (PEP 561)."""
    import supervisor

    assert (Path(supervisor.__file__).parent / "py.typed").exists()
