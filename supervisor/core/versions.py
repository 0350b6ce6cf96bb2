"""The version of a workflow: its name where it has one, else a hash of its own source, and the patches that it knows.

A hash is of the function alone, as a syntax tree: comments, whitespace, docstrings, annotations and decorators do not count, nor does
this library's version or Python's. The new branch of `if patched("id"):` does not count either: the tree is hashed as it was
before the patch, and the patch is told behind a plus sign. So `a1b2c3d4e5f6+check~9f3a` is the code `a1b2c3d4e5f6` with one patch, and
can go on with runs of both. How it is made may never change: a hash that changes parks every run there is.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from supervisor.core.errors import DefinitionError

VERSION_MAX = 100
BASE_HEX, BRANCH_HEX = 12, 4
_PATCH = re.compile(r"[A-Za-z0-9._:/-]{1,80}")
_UNSAID = frozenset(("type_comment", "kind", "ctx", "returns", "annotation", "type_params"))
_WORDS_MODULE = "supervisor.api.words"


def check_patch(name: object) -> str:
    """*name*, if a patch may be called so. Raises DefinitionError."""
    if not isinstance(name, str) or not _PATCH.fullmatch(name):
        raise DefinitionError(f"patch {name!r:.60}: give a text of 1 to 80 of the characters A-Z a-z 0-9 . _ : / -")
    return name


def check_version(version: object) -> str:
    """*version*, if a workflow's version may be called so. Raises DefinitionError."""
    if not isinstance(version, str) or not 0 < len(version) <= VERSION_MAX or not version.isprintable() or "+" in version or version != version.strip():
        raise DefinitionError(f"version={version!r:.60}: give a text of 1 to {VERSION_MAX} printable characters without a plus sign, which is for patches")
    return version


def accepts(mine: str, pin: str) -> bool:
    """Whether code of version *mine* may go on with a run of version *pin*: the same base, and every patch that the run may have met."""
    if mine == pin:
        return True
    base, *patches = mine.split("+")
    pinned, *met = pin.split("+")
    return base == pinned and set(met) <= set(patches)


def pin(version: str, patches: dict[str, bool] | None) -> str:
    """The version that a run stays with: that of its code, of whose patches only those count that the run has met."""
    base, *known = version.split("+")
    return "+".join((base, *(each for each in known if (patches or {}).get(each.partition("~")[0]))))


def version_of(fn: Callable[..., Any], named: str | None = None) -> str:
    """The version of the code of *fn*; what is *named* takes the place of the hash. Costs 0.1 ms. Raises DefinitionError."""
    tree = _tree(fn)
    reading = _Reading(fn.__globals__)
    if named is not None:
        patches = sorted(reading.all_patches(tree)) if tree is not None else []
        return "+".join((named, *patches))
    if tree is None:  # no source: of this Python alone
        return _hash(_compiled(fn.__code__), BASE_HEX)
    base = _hash(reading.function(tree), BASE_HEX)
    return "+".join((base, *(f"{name}~{_hash(''.join(branches), BRANCH_HEX)}" for name, branches in sorted(reading.patches.items()))))


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _tree(fn: Callable[..., Any]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function's own source; None where there is none, or it is no def."""
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    found = parsed.body[0] if parsed.body else None
    return found if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def _compiled(code: CodeType) -> str:
    consts = [_compiled(each) if isinstance(each, CodeType) else ascii(each) for each in code.co_consts]
    return "|".join((code.co_code.hex(), *code.co_names, *code.co_varnames, *consts))


class _Reading:
    """One walk over a tree: what is left of it without its patches, as text; and the patches, each with its branches."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self.patches: dict[str, list[str]] = {}

    def function(self, tree: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
        return f"{type(tree).__name__}({self._said(tree.args)},{self._block(tree.body)})"

    def all_patches(self, tree: ast.AST) -> set[str]:
        return {patch for node in ast.walk(tree) if (patch := self._called(node, ("patched", "deprecate_patch"))) is not None}

    # ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _called(self, node: ast.AST, words: tuple[str, ...] = ("patched",)) -> str | None:
        """The patch that *node* asks about, if it is `patched("…")`, however that was imported."""
        if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
            return None
        called: Any = None
        if isinstance(node.func, ast.Name):
            called = self._names.get(node.func.id)
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.attr in words:
            called = getattr(self._names.get(node.func.value.id), node.func.attr, None)
        if getattr(called, "__module__", None) != _WORDS_MODULE or getattr(called, "__name__", None) not in words:
            return None
        given = node.args[0]
        return check_patch(given.value) if isinstance(given, ast.Constant) else None

    def _fold(self, node: ast.If | ast.IfExp) -> tuple[str, Any, Any] | None:
        """(patch, new, old) of a choice by a patch."""
        test = node.test
        turned = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        patch = self._called(test.operand if isinstance(test, ast.UnaryOp) and turned else test)
        if patch is None:
            return None
        return (patch, node.orelse, node.body) if turned else (patch, node.body, node.orelse)

    def _note(self, patch: str, branch: str) -> None:
        self.patches.setdefault(patch, []).append(branch)

    # ── the tree as text ─────────────────────────────────────────────────────────────────────────────────────────

    def _block(self, statements: list[ast.stmt]) -> str:
        return "[" + ",".join(self._statements(statements)) + "]"

    def _statements(self, statements: list[ast.stmt]) -> Iterator[str]:
        for each in statements:
            if isinstance(each, ast.Pass) or isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                continue
            if isinstance(each, ast.If) and (choice := self._fold(each)):
                patch, new, old = choice
                self._note(patch, self._block(new))
                yield from self._statements(old)
            elif isinstance(each, ast.AnnAssign):
                if each.value is not None:
                    yield f"Assign([{self._said(each.target)}],{self._said(each.value)})"
            else:
                yield self._said(each)

    def _said(self, value: Any) -> str:
        if isinstance(value, ast.Constant):
            return f"{type(value.value).__name__}:{ascii(value.value)}"
        if isinstance(value, ast.JoinedStr):
            return f"JoinedStr({self._pieces(value.values)})"
        if isinstance(value, ast.IfExp) and (choice := self._fold(value)):
            patch, new, old = choice
            self._note(patch, self._said(new))
            return self._said(old)
        if isinstance(value, ast.AST):
            fields = (f"{name}={self._field(each)}" for name, each in ast.iter_fields(value) if name not in _UNSAID and each is not None and each != [])
            if isinstance(value, ast.Assign):
                return f"Assign([{','.join(map(self._said, value.targets))}],{self._said(value.value)})"
            return f"{type(value).__name__}({','.join(fields)})"
        return ascii(value)

    def _field(self, value: Any) -> str:
        if isinstance(value, list):
            return self._block(value) if value and isinstance(value[0], ast.stmt) else f"[{','.join(map(self._said, value))}]"
        return self._said(value)

    def _pieces(self, values: list[ast.expr]) -> str:
        """Parts of an f-string; texts beside each other are one, however they were written."""
        parts: list[str] = []
        text = ""
        for each in values:
            if isinstance(each, ast.Constant):
                text += str(each.value)
                continue
            parts += [ascii(text)] if text else []
            text = ""
            parts.append(self._said(each))
        return ",".join([*parts, ascii(text)] if text else parts)


__all__ = ["accepts", "check_patch", "check_version", "pin", "version_of"]
