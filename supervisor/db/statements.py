"""The project's SQL: read once from sql/, with one schema's names put in.

Owns the tokens that SQL files may use and the format of named blocks. Never connects and imports no driver.
Invariant: only the tokens of `TOKENS` are replaced, in one pass, so a text never depends on the order of
replacement and braces elsewhere (JSON, array literals, format strings) stay as they are. Before that a block's text is put
into the blocks that ask it along (`{block:pulse}`).

A block is `-- name: claim :many`, header comments (what, `Locks:`, `Index:`, `$1 int4 worker`, `Returns:`), then
its text up to the next block. The header stays out of the text that is sent.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import zip_longest
from typing import NamedTuple

from supervisor.core.errors import ConfigInvalid

PACKAGE = "supervisor.sql"
ROLES = ("worker", "client", "viewer", "operator")
SHAPES = ("one", "many", "rows", "exec", "void")

# 63 bytes is PostgreSQL's limit for a name; the longest name made from the schema's is "<schema>_operator".
SCHEMA_BYTES_MAX = 63 - len("_operator")
# Function bodies are dollar-quoted and hold format() templates; these characters would end or change them.
SCHEMA_FORBIDDEN = "'%$\\{}"

_TOKEN = re.compile(r"\{(schema_literal|schema|lock_class|role_(?:worker|client|viewer|operator)(?:_literal)?)\}")
_INCLUDED = re.compile(r"\{block:([a-z][a-z0-9_]*)\}")
_NAME = re.compile(r"^--\s*name:\s*(?P<name>[a-z][a-z0-9_]*)\s*(?::(?P<shape>[a-z]+))?\s*$")
_LABEL = re.compile(r"(?:^|(?<=  ))(Locks|Index|Returns|Raises|Why not)(?::|(?<=s)(?=\s))\s*")
_PARAM = re.compile(r"\$\d+\s")
_MIGRATION = re.compile(r"^(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql$")


class Block(NamedTuple):
    """One named statement as it stands in the file, tokens not yet replaced."""

    name: str
    shape: str
    file: str
    header: dict[str, str]
    text: str


class MigrationFile(NamedTuple):
    """One file of sql/migrations, tokens not yet replaced; `checksum` is of that raw text, equal under every schema."""

    number: int
    name: str
    text: str
    checksum: str


def identifier(name: str) -> str:
    """Quote *name* as an SQL identifier, always."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote *text* as an SQL string literal, the same under both settings of standard_conforming_strings."""
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def checked_schema(name: str) -> str:
    """Return *name* if it can be a cell's schema, else raise ConfigInvalid that says why not."""
    why = _schema_fault(name)
    if why:
        raise ConfigInvalid(f"schema {name!r} can't be used: {why}; choose another with PGSUPERVISOR_SCHEMA or [tool.pgsupervisor] schema")
    return name


def wake_channel(schema: str) -> str:
    """The channel on which starts of this schema are announced; notifications stay within their database."""
    return f"{schema}_wake"


def wake_now_channel(schema: str) -> str:
    """The channel on which workers that listen hear of a start before it is on the disk; where none claims it, the hosts hear of it on `wake_channel`."""
    return f"{schema}_wake_now"


def query_channel(schema: str) -> str:
    """The channel on which clients say that they have asked runs of a workflow."""
    return f"{schema}_query"


def signal_channel(schema: str) -> str:
    """The channel on which senders name workers that have the runs to which signals were sent."""
    return f"{schema}_signal"


def await_channel(schema: str) -> str:
    """The channel on which clients say which runs they await."""
    return f"{schema}_await"


def done_channel(schema: str, token: str) -> str:
    """The channel on which one client is told which of them have ended; *token* has eight characters, so the name fits."""
    return f"{schema}_{token}"


def ended_channel(schema: str) -> str:
    """The channel on which all that wait are told of runs that were ended without a worker."""
    return f"{schema}_ended"


def _schema_fault(name: str) -> str:
    if not name:
        return "it is empty"
    if name in ("public", "information_schema") or name.startswith("pg_"):
        return "it belongs to PostgreSQL or to everybody, and the engine revokes all rights on its schema from PUBLIC"
    if any(character in SCHEMA_FORBIDDEN or not character.isprintable() for character in name):
        return f"it has one of the characters {' '.join(SCHEMA_FORBIDDEN)} or one that can't be printed"
    if len(name.encode()) > SCHEMA_BYTES_MAX:
        return f"it has {len(name.encode())} bytes and at most {SCHEMA_BYTES_MAX} are left beside the suffix of a role's name"
    return ""


class Sql:
    """Every statement of the project for one schema. Cheap to make twice: files are read once per process."""

    def __init__(self, schema: str = "supervisor") -> None:
        self.schema = checked_schema(schema)
        self.tokens = _tokens(schema)
        self._texts: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Sql(schema={self.schema!r})"

    def get(self, name: str) -> str:
        """The text of block *name*, ready to send. Raises KeyError with the near names for an unknown one."""
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = self.render(_INCLUDED.sub(lambda found: _block(found[1]).text, _block(name).text))
        return text

    def header(self, name: str) -> dict[str, str]:
        """What block *name* says about itself: name, shape, what, and locks, index, params, returns where given."""
        return dict(_block(name).header)

    def names(self) -> list[str]:
        """Every block's name, sorted."""
        return sorted(blocks())

    def render(self, text: str) -> str:
        """Replace the tokens in *text*; everything else stays."""
        return _TOKEN.sub(lambda found: self.tokens[found[1]], text)


def _tokens(schema: str) -> dict[str, str]:
    quoted = identifier(schema)
    as_literal = literal(quoted)
    tokens = {
        "schema": quoted,
        "schema_literal": as_literal,
        # a name may be reused by another schema, an oid isn't; fully qualified, so that no search_path can change it
        "lock_class": f"pg_catalog.hashint4({as_literal}::pg_catalog.regnamespace::pg_catalog.oid::pg_catalog.int4)",
    }
    for role in ROLES:
        tokens[f"role_{role}"] = identifier(f"{schema}_{role}")
        tokens[f"role_{role}_literal"] = literal(f"{schema}_{role}")
    return tokens


TOKENS = tuple(_tokens("supervisor"))


# ── reading sql/ ─────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1)
def blocks() -> dict[str, Block]:
    """Every block of sql/queries/*.sql by name. A name that stands twice is an error: `get` could not choose."""
    found: dict[str, Block] = {}
    for path in _sql_files("queries"):
        for block in parse_blocks(path.read_text("utf-8"), path.name):
            if block.name in found:
                raise ValueError(f"block {block.name!r} stands in {found[block.name].file} and in {block.file}; rename one")
            found[block.name] = block
    return found


@lru_cache(maxsize=1)
def migration_files() -> tuple[MigrationFile, ...]:
    """The files of sql/migrations in order. Numbers must be 1, 2, 3 … without holes."""
    made = []
    for path in _sql_files("migrations"):
        match = _MIGRATION.match(path.name)
        if not match:
            raise ValueError(f"sql/migrations/{path.name}: a migration is named NNNN_name.sql, small letters, digits and _")
        text = path.read_text("utf-8").replace("\r\n", "\n")
        made.append(MigrationFile(int(match["number"]), match["name"], text, hashlib.sha256(text.encode()).hexdigest()))
    numbers = [each.number for each in made]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"sql/migrations has the numbers {numbers}; they must be 1, 2, 3 … without holes")
    return tuple(made)


def parse_blocks(text: str, file: str) -> list[Block]:
    """Split one query file into its blocks; text before the first `-- name:` is the file's own comment."""
    starts: list[tuple[int, str, str]] = []
    lines = text.splitlines()
    for at, line in enumerate(lines):
        match = _NAME.match(line)
        if match:
            starts.append((at, match["name"], match["shape"] or "exec"))
        elif re.match(r"^--\s*name:", line):
            raise ValueError(f"{file}, line {at + 1}: {line!r} is not `-- name: small_letters :shape`")
    ends = [start for start, _, _ in starts[1:]] + [len(lines)]
    return [_parse_block(name, shape, file, lines[at + 1 : end]) for (at, name, shape), end in zip(starts, ends, strict=True)]


def _parse_block(name: str, shape: str, file: str, lines: list[str]) -> Block:
    if shape not in SHAPES:
        raise ValueError(f"{file}: block {name} has shape :{shape}; known are {', '.join(':' + each for each in SHAPES)}")
    body_at = next((at for at, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("--")), len(lines))
    comments = [line.strip()[2:].strip() for line in lines[:body_at] if line.strip()]
    body = "\n".join(lines[body_at:])
    # comments and rules between this block's end and the next name belong to the file, not to the statement
    body = re.sub(r"(?:\n[ \t]*(?:--[^\n]*)?)+$", "", body).rstrip().rstrip(";").rstrip()
    if not body:
        raise ValueError(f"{file}: block {name} has no statement")
    return Block(name, shape, file, {"name": name, "shape": shape, **_parse_header(comments)}, body)


def _parse_header(comments: list[str]) -> dict[str, str]:
    """Sort header lines into what, locks, index, params, returns, raises; text without a label continues the part before it."""
    parts: dict[str, list[str]] = {}
    part = "what"
    for line in comments:
        labels = list(_LABEL.finditer(line))
        if _PARAM.match(line):
            part = "params"
        before = line[: labels[0].start()] if labels else line
        if before.strip():
            parts.setdefault(part, []).append(before.strip())
        for label, following in zip_longest(labels, labels[1:]):
            part = label[1].lower().replace(" ", "_")
            parts.setdefault(part, []).append(line[label.end() : following.start() if following else len(line)].strip())
    return {name: " ".join(each).strip() for name, each in parts.items()}


def _block(name: str) -> Block:
    try:
        return blocks()[name]
    except KeyError:
        from difflib import get_close_matches

        near = get_close_matches(name, blocks(), 3)
        raise KeyError(f"sql/queries has no block {name!r}" + (f"; near: {', '.join(near)}" if near else "")) from None


def _sql_files(folder: str) -> list[Traversable]:
    found = [each for each in (files(PACKAGE) / folder).iterdir() if each.name.endswith(".sql")]
    return sorted(found, key=lambda each: each.name)
