"""What clients and hosts tell each other of awaited runs: run ids as text that a notification can carry.

A client says `TOKEN ids` on the channel that all hosts of a schema hear; a host answers with ids on the channel of that
token. Pure: from ids to text and back. Whoever may connect may notify: what can't be read is nothing.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence

ID_BYTES = 16
IDS_MAX = 360  # in one notification: 7,680 characters of at most 7,999
ALL = "*"  # more has ended than was noted: ask about every run
HELLO = "hello"  # of a client to itself: does it hear?
_TOKEN = re.compile(r"[0-9a-f]{8}")


def texts(ids: Sequence[bytes]) -> list[str]:
    """*ids* as payloads, IDS_MAX in each."""
    return [b64encode(b"".join(ids[at : at + IDS_MAX])).decode() for at in range(0, len(ids), IDS_MAX)]


def ids_of(text: str) -> list[bytes]:
    """The ids of one payload; none of a text that is no such payload."""
    try:
        packed = b64decode(text, validate=True)
    except ValueError:
        return []
    return [packed[at : at + ID_BYTES] for at in range(0, len(packed), ID_BYTES)] if len(packed) % ID_BYTES == 0 else []


def asked(token: str, ids: Iterable[bytes]) -> list[str]:
    """What the client with *token* tells the hosts: it awaits *ids*."""
    return [f"{token} {text}" for text in texts(list(ids))]


def read_asked(payload: str) -> tuple[str, list[bytes]]:
    """Token and ids of such a payload; no ids where it can't be read."""
    token, _, text = payload.partition(" ")
    return (token, ids_of(text)) if _TOKEN.fullmatch(token) else ("", [])
