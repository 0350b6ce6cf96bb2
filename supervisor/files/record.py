"""From a record of a file to the stored input of a run and its key, or to what is wrong with it and where.

A record is the only parameter's value where the workflow has one parameter, else the object by parameter name: an object that names that one
parameter alone, and that can't be its value, too.
Pure: no file, no database. What passes is stored as it was written, without white space between its parts: numbers
keep all their digits. Where the app is imported the types of the parameters are checked too, and CSV text is read by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from supervisor.api.asked import KEY_MAX
from supervisor.core import codec, kinds
from supervisor.core.errors import InputInvalid, PayloadRefused

_NUMBER = frozenset("-0123456789")
_JSON_BEGINS = _NUMBER | frozenset('tfn{["')
_decode = msgspec.json.Decoder().decode
_pieces = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_whole = msgspec.json.Encoder().encode


class Refused(Exception):
    """A record does not fit: *path* is where in it, *code* is stable."""

    def __init__(self, path: str, why: str, code: str = "input_invalid") -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why, self.code = path, why, code


class Rules:
    """What records of one workflow must be.

    parameters  name and required of each, as the catalogue or the definition has them
    definition  the workflow where its app is imported; None: names alone are checked
    key_field   where in a record its key is: a field's name, or names with dots between them
    Cost        2 µs for a record of 100 bytes by names, 3 µs by types
    """

    def __init__(self, workflow: str, parameters: Sequence[dict[str, Any]], definition: Any = None, key_field: str | None = None) -> None:
        self.workflow = workflow
        self.names = tuple(each["name"] for each in parameters)
        self._required = tuple(each["name"] for each in parameters if each.get("required"))
        self._only = self.names[0] if len(self.names) == 1 else None
        self._schemas = {each["name"]: each["schema"] for each in parameters if "schema" in each}
        self.by_name = self._only is None  # whether a record has been read so
        self._before = b'{"%s":' % self._only.encode() if self._only else b""
        self._read: Callable[[bytes], Any] | None = definition.input.read if definition is not None else None
        self._write_text: Callable[[dict[str, Any]], bytes] | None = definition.input.write_text if definition is not None else None
        self._key_field = key_field
        self._apart = key_field if key_field is not None and key_field not in self.names and self._only is None else None  # not of the input

    # ── JSON Lines ───────────────────────────────────────────────────────────────────────────────────────────────

    def json(self, line: bytes) -> tuple[bytes, str | None]:
        """Input and key of the record on one line. Raises Refused."""
        try:
            value = _decode(line)
            text = msgspec.json.format(line, indent=-1)
        except msgspec.ValidationError as error:
            raise _refused(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused("$", _reason(error), "not_json") from None
        if b"\\u0000" in text or text.count(b"[") + text.count(b"{") > codec.DEPTH_MAX:
            _check(value)
        whole = self._only is not None and not kinds.by_name(self._only, self._schemas.get(self._only), value)
        if whole:
            self._fits({self._only or "": value}, "$")
            payload = self._before + text + b"}"
        elif type(value) is dict and tuple(value) == self.names:
            self._fits(value)
            payload, self.by_name = text, True
        else:
            payload = self._by_name(value, text)
        return self._checked(payload, whole), None if self._key_field is None else self._key(value)

    def _by_name(self, value: Any, text: bytes) -> bytes:
        """The object with its members in the order of the parameters: one call has one form, and so one hash."""
        if type(value) is not dict:
            raise Refused("$", f"a record must be an object with the parameters {self._told()}, not {_kind(value)}")
        self._check_names(value)
        self._fits(value)
        pieces = _pieces(text)
        return b"{" + b",".join([b'"%s":%s' % (name.encode(), bytes(pieces[name])) for name in self.names if name in pieces]) + b"}"

    def _check_names(self, record: dict[str, Any]) -> None:
        for name in record:
            if name not in self.names and name != self._apart:
                raise Refused(f"$.{name}", f"not one of the parameters of {self.workflow} ({self._told()})")
        for name in self._required:
            if name not in record:
                raise Refused(f"$.{name}", "required but not given")

    def _fits(self, record: dict[str, Any], path: str | None = None) -> None:
        """Refuse what can't be a parameter's value by what the catalogue has of it; where the app is imported, its types say more."""
        if self._read is not None:
            return
        for name, schema in self._schemas.items():
            if name in record and not kinds.fits(schema, record[name]):
                raise Refused(path or f"$.{name}", kinds.refusal(schema, record[name]))

    def _checked(self, payload: bytes, whole: bool = True) -> bytes:
        if len(payload) > codec.PAYLOAD_MAX_BYTES:
            raise Refused("$", f"{len(payload):,} bytes of JSON, more than {codec.PAYLOAD_MAX_BYTES:,}; store it elsewhere and pass where it is", "payload_refused")
        if self._read is not None:
            try:
                self._read(payload)
            except InputInvalid as error:
                raise self._of_type(error.why, whole) from None
            except Exception as error:  # noqa: BLE001 - the types are the user's, and may raise what they like
                raise Refused("$", codec.brief(error)) from None
        return payload

    def _of_type(self, why: str, whole: bool = True) -> Refused:
        """What the decoder said of the whole input, with a path into the record; *whole*: that is the only parameter's value."""
        refused = _refused(why)
        if whole and self._only is not None and refused.path.startswith(f"$.{self._only}"):
            refused.path = "$" + refused.path.removeprefix(f"$.{self._only}")
        return refused

    # ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_head(self, head: Sequence[str]) -> None:
        """Refuse a head that no record below it could mend. Raises Refused."""
        twice = [name for at, name in enumerate(head) if name in head[:at]]
        if twice:
            raise Refused(f"$.{twice[0]}", "this column is there twice")
        if "" in head:
            raise Refused("$", f"column {list(head).index('') + 1} has no name")
        if self._key_field is not None and self._key_field not in head:
            raise Refused(f"$.{self._key_field}", f"the column of the key is not there; the columns are {', '.join(head)}")
        if self._only is None:
            self._check_names(dict.fromkeys(head))

    def row(self, head: Sequence[str], cells: Sequence[str]) -> tuple[bytes, str | None]:
        """Input and key of one row of CSV below *head*; an empty cell is left out. Raises Refused."""
        if len(cells) != len(head):
            raise Refused("$", f"{len(cells)} cells below {len(head)} columns", "not_csv")
        record = dict(zip(head, cells, strict=True))
        key = None if self._key_field is None else self._key(record)
        for name, cell in record.items():
            if not cell.isascii() and any("\ud800" <= char <= "\udfff" for char in cell):
                raise Refused(f"$.{name}", "bytes that are not UTF-8", "not_csv")
            if "\x00" in cell:
                raise Refused(f"$.{name}", "text with a NUL character, which jsonb can't hold; remove it", "payload_refused")
        given = {name: cell for name, cell in record.items() if cell != "" and name != self._apart}
        if self._write_text is not None:
            return self._typed(given), key
        named = self._only is None or list(head) == [self._only]
        if named:
            self._check_names(given)
        pieces = {name: self._cell(name, cell) if named else _cell(cell) for name, cell in given.items()}
        if named:
            self._fits({name: _decode(piece) for name, piece in pieces.items()})
        else:
            self._fits({self._only or "": given}, "$")
        text = b"{" + b",".join([_whole(name) + b":" + piece for name, piece in pieces.items()]) + b"}"
        return self._checked(text if named else self._before + text + b"}"), key

    def _cell(self, name: str, cell: str) -> bytes:
        """As `_cell`, but that a parameter that takes text has the text of what else it does not take."""
        piece, schema = _cell(cell), self._schemas.get(name)
        return _whole(cell) if schema is not None and kinds.is_text(schema, cell, _decode(piece)) else piece

    def _typed(self, given: dict[str, Any]) -> bytes:
        assert self._write_text is not None
        try:
            try:
                return self._write_text(given)
            except InputInvalid:
                nested = {name: _nested(cell) for name, cell in given.items()}
                if nested == given:
                    raise
                return self._write_text(nested)
        except InputInvalid as error:
            raise self._of_type(error.why) from None
        except PayloadRefused as error:
            raise Refused(error.path, error.why, error.code) from None
        except Exception as error:  # noqa: BLE001 - the types are the user's, and may raise what they like
            raise Refused("$", codec.brief(error)) from None

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _key(self, record: Any) -> str:
        field = self._key_field or ""
        found, path = record, "$"
        for name in [field] if type(record) is dict and field in record else field.split("."):
            path += f".{name}"
            if type(found) is not dict or name not in found:
                raise Refused(path, "the field of the key is not there")
            found = found[name]
        key = str(found) if type(found) is int else found
        if type(key) is not str or not 0 < len(key) <= KEY_MAX or "\x00" in key:
            raise Refused(path, f"a key is text of 1 to {KEY_MAX} characters or a whole number, not {_kind(found)}")
        return key

    def _told(self) -> str:
        return ", ".join(self.names) or "it has none"


def _check(value: Any) -> None:
    try:
        codec.check(value, strict_keys=True)
    except PayloadRefused as error:
        raise Refused(error.path, error.why, error.code) from None


def _refused(said: str) -> Refused:
    """msgspec's words, parted: "Expected `int`, got `str` - at `$.order.total`"."""
    why, found, path = said.rpartition(" - at `")
    return Refused(path.removesuffix("`"), why) if found else Refused("$", said)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested deeper than {codec.DEPTH_MAX} levels"
    return f"not JSON: {str(error).removeprefix('JSON is malformed: ')}"


def _kind(value: Any) -> str:
    return {dict: "an object", list: "an array", str: f"text of {len(value) if type(value) is str else 0} characters", type(None): "null"}.get(
        type(value), f"{value!r}"
    )


def _cell(text: str) -> bytes:
    """A cell without a type: the JSON that it is, digit for digit, else text. Whole numbers over 64 bits are text: they are names."""
    if text[0] in _JSON_BEGINS:
        try:
            value = _decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return _whole(text)
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            return _whole(text)
        _check(value)
        return msgspec.json.format(text.encode(), indent=-1)
    return _whole(text)


def _nested(cell: str) -> Any:
    """A cell that holds an array or an object, for a parameter that is one."""
    if cell[:1] in ("[", "{"):
        try:
            return _decode(cell)
        except (msgspec.MsgspecError, RecursionError):
            return cell
    return cell
