"""Tokens: which try of which step somebody outside may complete, and a code that proves it was given out.

Pure. The same in SQL (`token_parts`): 16 bytes of the run's id, seq and number of the try as int4, and the first 16 bytes of a keyed hash over
these, in base64 for URLs. Who does not know the cell's key can't make one, so none has to be stored.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64encode
from hashlib import sha256

PREFIX = "pgst_"


def make(key: bytes, run_id: bytes, seq: int, attempt: int) -> str:
    """The token of one try, the same whenever it is asked for."""
    named = struct.pack(">16sii", run_id, seq, attempt)
    code = sha256(key + sha256(key + named).digest()).digest()[:16]
    return PREFIX + urlsafe_b64encode(named + code).decode().rstrip("=")
