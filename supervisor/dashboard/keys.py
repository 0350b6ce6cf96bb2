"""Who may come in: a token that is exchanged once for a cookie, and those who have one. All of it in memory, but for the file with the next token.

The token stands in a URL's fragment, which browsers send to nobody, and in a file that its owner alone can read; it is never logged. Compared in
constant time. Restarting the dashboard ends all sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

IDLE_S = 12 * 3600.0
VISITORS_MAX = 200
NAME_MAX = 100


@dataclass
class Visitor:
    """One signed-in browser. `csrf` stands in each of its forms."""

    name: str
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    seen_at: float = field(default_factory=time.monotonic)


class Keys:
    """Thread-safe.

    path   where the next token's URL is kept, mode 0600      url   the address of the login page
    tell   called with each new URL: for a terminal, never for a log
    """

    def __init__(self, path: Path, url: str, tell: Callable[[str], None], actor: str) -> None:
        self.path, self._url, self._tell, self._actor = path, url, tell, actor
        self._lock = threading.Lock()
        self._visitors: dict[bytes, Visitor] = {}
        self._token = ""
        self._renew()

    def exchange(self, given: str, name: str) -> tuple[str, Visitor] | None:
        """A cookie's value for the token, which is worth nothing from then on; None for another one."""
        with self._lock:
            if not same(given, self._token):
                return None
            cookie = secrets.token_urlsafe(32)
            visitor = Visitor(name.strip()[:NAME_MAX] or self._actor)
            self._visitors[_digest(cookie)] = visitor
            self._forget()
            self._renew()
        return cookie, visitor

    def visitor(self, cookie: str) -> Visitor | None:
        """Who has this cookie; None where nobody has, or has been away for too long."""
        with self._lock:
            found = self._visitors.get(_digest(cookie))
            if found is None or time.monotonic() - found.seen_at > IDLE_S:
                return None
            found.seen_at = time.monotonic()
            return found

    def leave(self, cookie: str) -> None:
        with self._lock:
            self._visitors.pop(_digest(cookie), None)

    def reads(self, given: str) -> bool:
        """Whether this is the token of the file: good for reading, without a cookie."""
        with self._lock:
            return same(given, self._token)

    def close(self) -> None:
        self.path.unlink(missing_ok=True)

    def _forget(self) -> None:
        now = time.monotonic()
        for key in [key for key, visitor in self._visitors.items() if now - visitor.seen_at > IDLE_S]:
            del self._visitors[key]
        while len(self._visitors) > VISITORS_MAX:
            del self._visitors[min(self._visitors, key=lambda key: self._visitors[key].seen_at)]

    def _renew(self) -> None:
        self._token = secrets.token_urlsafe(32)
        url = f"{self._url}#{self._token}"
        write_private(self.path, url + "\n")
        self._tell(url)


def same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(_digest(given), _digest(wanted))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def write_private(path: Path, text: str) -> None:
    """Make *path* new with mode 0600, whatever lay there before; a link is replaced and not followed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
