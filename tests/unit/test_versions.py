"""The version of a workflow's code: what changes it, what does not, and that it is the same for ever."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.core import versions
from supervisor.core.errors import DefinitionError
from supervisor.core.versions import accepts, pin

HEAD = "from supervisor import deprecate_patch, gather, patched, sleep, step, workflow\nimport supervisor\nfrom supervisor import patched as changed\n\n@step\ndef a() -> int: ...\n@step\ndef b() -> int: ...\n\n"
PLAIN = "@workflow\nasync def w(n: int, m: int = 2) -> int:\n    x = await a.aio()\n    return x + n\n"
_numbers = itertools.count()


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The version of `w` in a module of that text."""
    from supervisor.core import registry

    monkeypatch.setattr(registry, "_workflows", {})
    monkeypatch.setattr(registry, "_steps", [])

    def load(text: str) -> str:
        registry._workflows.clear()
        name = f"versioned_{next(_numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(HEAD + text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        found: str = module.w.version
        return found

    return load


# ── a hash is for ever ───────────────────────────────────────────────────────────────────────────────────────────

GOLDEN = {  # never change a line of this: each is a hash that runs of users are pinned to
    PLAIN: "53b52d8a29e9",
    "@workflow\ndef w() -> str:\n    return f'{1.5:>{3}} {\"ä\"!r}' + 'x' 'y'\n": "855719e3eb2c",
    "@workflow\nasync def w(*, k: dict | None = None):\n    try:\n        async with k as c:\n            match c:\n                case {'a': [1, *rest], **others} if rest: return lambda q, /, r=-1j: (q, r)\n                case _: raise ValueError from None\n    except* OSError as e:\n        k = [i async for i in e if i is not ...]\n    finally:\n        del k\n": "e9426de9342b",
    "@workflow\nasync def w():\n    if patched('check'):\n        await b.aio()\n    return await a.aio()\n": "5c49d09a3c3f+check~10d7",
}


@pytest.mark.parametrize("text", GOLDEN)
def test_a_version_is_the_same_under_every_python_and_every_release(version: Callable[..., str], text: str) -> None:
    """A hash that an upgrade changes would park every run there is."""
    assert version(text) == GOLDEN[text]


# ── what counts ──────────────────────────────────────────────────────────────────────────────────────────────────

SAME = {
    "comments and blank lines": "@workflow\n\nasync def w(n: int, m: int = 2) -> int:  # a workflow\n    x = await a.aio()\n\n\n    # and so on\n    return x + n\n",
    "a docstring": '@workflow\nasync def w(n: int, m: int = 2) -> int:\n    """What it does."""\n    x = await a.aio()\n    return x + n\n',
    "line breaks and parentheses": "@workflow\nasync def w(\n    n: int,\n    m: int = 2,\n) -> int:\n    x = (\n        await a.aio()\n    )\n    return (x + n)\n",
    "annotations": "@workflow\nasync def w(n, m=2):\n    x: int = await a.aio()\n    y: int\n    return x + n\n",
    "its options": "@workflow(queue='slow', timeout=5)\nasync def w(n: int, m: int = 2) -> int:\n    x = await a.aio()\n    return x + n\n",
    "its name for starts": "@workflow(name='other')\nasync def w(n: int, m: int = 2) -> int:\n    x = await a.aio()\n    return x + n\n",
    "its place and its steps": "@step\ndef c(): ...\n\ndef b():\n    return 1\n\ndef made():\n    @workflow\n    async def w(n: int, m: int = 2) -> int:\n        x = await a.aio()\n        return x + n\n    return w\n\nw = made()\n",
    "what does nothing": "@workflow\nasync def w(n: int, m: int = 2) -> int:\n    pass\n    x = await a.aio()\n    'a text'\n    return x + n\n",
}  # fmt: skip
OTHER = {
    "another step": PLAIN.replace("a.aio", "b.aio"),
    "a step more": PLAIN.replace("    return", "    await b.aio()\n    return"),
    "another constant": PLAIN.replace("m: int = 2", "m: int = 3"),
    "1 for True": PLAIN.replace("m: int = 2", "m: int = True"),
    "a def workflow": PLAIN.replace("async def", "def").replace("await a.aio()", "a()"),
    "another parameter": PLAIN.replace("m: int = 2", "m: int = 2, o: int = 3"),
    "another operator": PLAIN.replace("x + n", "x - n"),
    "another name of a variable": PLAIN.replace("x", "y"),
}


@pytest.mark.parametrize("what", SAME)
def test_a_version_stays_where_nothing_changed_that_is_executed(version: Callable[..., str], what: str) -> None:
    assert version(SAME[what]) == version(PLAIN)


@pytest.mark.parametrize("what", OTHER)
def test_a_version_changes_with_the_code(version: Callable[..., str], what: str) -> None:
    assert version(OTHER[what]) != version(PLAIN)


# ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────────

PATCHES = {
    "if": PLAIN.replace("    return", "    if patched('check'):\n        await b.aio()\n    return"),
    "if with else": PLAIN.replace("    x = await a.aio()", "    if patched('check'):\n        x = await b.aio()\n    else:\n        x = await a.aio()"),
    "if not": PLAIN.replace("    x = await a.aio()", "    if not patched('check'):\n        x = await a.aio()\n    else:\n        x = await b.aio()"),
    "in an expression": PLAIN.replace("await a.aio()", "await b.aio() if patched('check') else await a.aio()"),
    "in a loop, of another name": PLAIN.replace("    return", "    if changed('check'):\n        for i in range(3):\n            await b.aio()\n    return"),
    "of the module": PLAIN.replace("    return", "    if supervisor.patched('check'):\n        await b.aio()\n    return"),
}


@pytest.mark.parametrize("how", PATCHES)
def test_a_patch_does_not_change_the_base_of_a_version(version: Callable[..., str], how: str) -> None:
    """So code with a patch goes on with runs of the code before it, and the code before it never gets those that met the patch."""
    before, after = version(PLAIN), version(PATCHES[how])
    assert after.startswith(f"{before}+check~") and len(after) == len(before) + len("+check~") + 4
    assert accepts(after, before) and accepts(after, after) and not accepts(before, after)
    assert pin(after, {"check": True}) == after and pin(after, {"check": False}) == before == pin(after, None)


def test_another_new_branch_is_another_patch(version: Callable[..., str]) -> None:
    one, other = version(PATCHES["if"]), version(PATCHES["in a loop, of another name"])
    assert one.partition("+")[0] == other.partition("+")[0] and not accepts(one, other) and not accepts(other, one)


def test_patches_may_be_nested_and_several(version: Callable[..., str]) -> None:
    text = PLAIN.replace("    return", "    if patched('one'):\n        await b.aio()\n        if patched('two'):\n            await a.aio()\n    elif patched('three'):\n        pass\n    return")
    base, *patches = version(text).split("+")
    assert base == version(PLAIN) and [each.partition("~")[0] for each in patches] == ["one", "three", "two"]


def test_what_only_looks_like_a_patch_is_code(version: Callable[..., str]) -> None:
    local = "def patched(name): return True\n" + PATCHES["if"]
    assert "+" not in version(local) and version(local) != version(PLAIN)
    assert "+" not in version(PLAIN.replace("    return", "    if patched('check') and x:\n        await b.aio()\n    return"))


def test_a_named_version_names_the_patches_that_its_code_knows(version: Callable[..., str]) -> None:
    named = PATCHES["if"].replace("@workflow", "@workflow(version='2')")
    assert version(PLAIN.replace("@workflow", "@workflow(version='2')")) == "2"
    assert version(named) == "2+check"
    assert version(PLAIN.replace("@workflow", "@workflow(version='2')").replace("    return", "    deprecate_patch('check')\n    return")) == "2+check"


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("named", ["''", "'1+2'", "'a\\nb'", "7", "'x' * 101", "' 1'"])
def test_a_bad_name_of_a_version_is_refused_at_import(version: Callable[..., str], named: str) -> None:
    with pytest.raises(DefinitionError, match="version="):
        version(PLAIN.replace("@workflow", f"@workflow(version={named})"))


@pytest.mark.parametrize("named", ["''", "'a+b'", "'two words'", "7"])
def test_a_bad_name_of_a_patch_is_refused_at_import(version: Callable[..., str], named: str) -> None:
    with pytest.raises(DefinitionError, match="patch"):
        version(PATCHES["if"].replace("'check'", named))


def test_a_function_without_source_has_a_version_of_its_bytecode() -> None:
    """Of this Python alone: whoever ships no source names the version."""
    made: dict[str, Any] = {}
    exec("def w(n):\n    return n + 1\ndef x(n):\n    return n + 2\n", made)  # noqa: S102
    assert versions.version_of(made["w"]) != versions.version_of(made["x"])
    assert versions.version_of(made["w"], "1") == "1"


# ── who may go on with what ──────────────────────────────────────────────────────────────────────────────────────

ACCEPTS = [
    ("a", "a", True), ("a", "b", False), ("a+p", "a", True), ("a", "a+p", False), ("a+p+q", "a+q", True), ("a+p", "a+q", False),
    ("a+p", "p", False), ("a+p~12", "a+p~34", False), ("2", "2", True), ("2", "20", False),
]  # fmt: skip


@pytest.mark.parametrize(("mine", "pinned", "may"), ACCEPTS)
def test_code_goes_on_with_its_own_base_and_the_patches_that_it_knows(mine: str, pinned: str, may: bool) -> None:
    assert accepts(mine, pinned) is may
