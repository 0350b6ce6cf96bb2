"""Settings: one frozen value that says how the program runs, and where each part of it came from.

Precedence: flag, then environment (PGSUPERVISOR_*), then [tool.pgsupervisor] of ./pyproject.toml, then default.
Pure but for reading that one file. Never connects; whether a database is there is not asked here.
A misspelt key is an error that names the near one: a setting that silently does nothing costs an afternoon.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from supervisor.core.errors import ConfigInvalid

PREFIX = "PGSUPERVISOR_"
TABLE = "[tool.pgsupervisor]"

Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Span = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,5} ?(hour|day|week)s?$")]
_SPAN_S = {"hour": 3600.0, "day": 86_400.0, "week": 604_800.0}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the program runs. `sources` says for each field where its value came from ("default" included)."""

    app: str | None = None  # module that defines workflows: pkg.mod
    procs: Count | Literal["auto"] = "auto"  # worker processes
    threads: Count = 8  # threads per worker for `def` steps
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 5000  # runs in memory at most, per worker; it adapts below that
    queues: tuple[str, ...] = ()  # served queues; empty: those of the app's workflows
    until_empty: bool = False  # end when nothing is left to do
    schema: str = "supervisor"
    dsn: str | None = None  # PGSUPERVISOR_DATABASE_URL in the environment
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"  # on the terminal; in a file it is always JSON
    log_dir: str | None = None  # where workers log to; without one they write to standard error
    log_file_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = 64 << 20  # of one file, then it is rotated
    log_files: Count = 8  # kept, the current one included
    traces: bool = False  # spans of OpenTelemetry, to where its own OTEL_* variables say; needs the extra [otel]
    metrics: str | None = None  # where they are served for Prometheus: [HOST:]PORT; None: nowhere
    code_limit_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0  # CPU time of workflow code between two durable words, then its worker is ended; 0: never
    retention: Span | None = None  # how long the history of ended runs is kept; None: for ever
    sources: dict[str, str] = {}


FIELDS = {field.name: field.type for field in msgspec.structs.fields(Settings) if field.name != "sources"}
_ENV_OF = {name: PREFIX + ("DATABASE_URL" if name == "dsn" else name.upper()) for name in FIELDS}
_FIELD_OF = {variable: name for name, variable in _ENV_OF.items()}


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    folder: str | os.PathLike[str] = ".",
) -> Settings:
    """Put the settings together.

    flags    field name → value as given on the command line; None means not given. Unknown names are errors.
    environ  os.environ unless given.      folder  where pyproject.toml is looked for; parents are not searched.
    Raises   ConfigInvalid that names the place, the key, what was expected, and for a misspelt key the near one.
    """
    values: dict[str, Any] = {}
    sources = dict.fromkeys(FIELDS, "default")
    layers = (_from_file(Path(folder)), _from_environment(os.environ if environ is None else environ), _from_flags(flags or {}))
    for layer in layers:
        for name, (value, source) in layer.items():
            values[name], sources[name] = value, source
    return Settings(**values, sources=sources)


def span_s(span: str) -> float:
    """Seconds of a `Span`: "90 days"."""
    found = re.fullmatch(r"(\d+) ?([a-z]+?)s?", span)
    assert found is not None
    return int(found[1]) * _SPAN_S[found[2]]


Layer = dict[str, tuple[Any, str]]


def _from_file(folder: Path) -> Layer:
    path = folder / "pyproject.toml"
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path} can't be read ({error}); mend the file, or run where there is none") from error
    try:
        table = tomllib.loads(text).get("tool", {}).get("pgsupervisor", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{path} is not TOML ({error}); mend that line") from error
    if not isinstance(table, dict):
        raise ConfigInvalid(f"{path}: tool.pgsupervisor is {table!r} and must be a table: write {TABLE}")
    source = f"{TABLE} in {path}"
    return {_known(name, FIELDS, source): (_typed(name, value, f"{source}: {name}", True), source) for name, value in table.items()}


def _from_environment(environ: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or text == "":
            continue
        name = _FIELD_OF.get(variable)
        if name is None:
            _refuse_near(variable)  # other parts of the project have variables of this prefix too: only a misspelling is refused
            continue
        value = [part.strip() for part in text.split(",") if part.strip()] if name == "queues" else text
        layer[name] = (_typed(name, value, variable, False), variable)
    return layer


def _from_flags(flags: Mapping[str, Any]) -> Layer:
    layer: Layer = {}
    for name, value in flags.items():
        _known(name, FIELDS, "the command line")
        if value is not None:
            flag = "--" + name.replace("_", "-")
            layer[name] = (_typed(name, value, flag, False), flag)
    return layer


def _typed(name: str, value: Any, where: str, strict: bool) -> Any:
    """Convert by the field's type; text from flags and environment may stand for numbers and booleans."""
    if isinstance(value, str) and not strict and FIELDS[name] is bool:
        value = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower(), value.lower())
    try:
        return msgspec.convert(value, FIELDS[name], strict=strict)
    except msgspec.ValidationError as error:
        shown = "its value" if name == "dsn" else repr(value)
        raise ConfigInvalid(f"{where}: {shown} does not fit ({error}); {_expected(name)}") from None


def _expected(name: str) -> str:
    return {
        "procs": "give a number of processes from 1 to 1024, or auto",
        "threads": "give a number of threads from 1 to 1024",
        "in_flight": "give a number of runs from 1 to 100000",
        "queues": "give names of queues, in the file as a list, in the environment separated by commas",
        "until_empty": "give true or false",
        "traces": "give true or false",
        "log_level": "give debug, info, warning or error",
        "log_format": "give text or json",
        "log_file_bytes": "give a number of bytes, at least 65536",
        "log_files": "give a number of files from 1 to 1024",
        "metrics": "give a port, or HOST:PORT, as text: '9464'",
        "code_limit_s": "give a number of seconds, 0 for no limit",
        "retention": "give a number of hours, days or weeks: '90 days'",
    }.get(name, "give text")


def _known(name: str, known: Mapping[str, Any], where: str) -> str:
    if name in known:
        return name
    near = get_close_matches(name.replace("-", "_"), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}"
    raise ConfigInvalid(f"{where} has no setting {name!r}; {hint}")


def _refuse_near(variable: str) -> None:
    near = get_close_matches(variable, _FIELD_OF, 1, 0.93)
    if near:
        raise ConfigInvalid(f"the environment variable {variable} is not one of pgsupervisor's; did you mean {near[0]}?")
