"""The gate in front of every page: which hosts, origins, methods and cookies get through, and the headers that every answer has.

ASGI, without a framework and without the database. Whatever is not let in explicitly is refused; nothing that changes anything is a GET.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote

from supervisor.dashboard.keys import Keys

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_MAX = 3 << 20  # a payload of 2 MiB, and some
OPEN = ("/login", "/healthz")  # what one sees without a cookie, beside /static
METHODS = ("GET", "HEAD", "POST")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # no-referrer would make browsers send `Origin: null` with our own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Refusal(Exception):
    status: int
    why: str


@dataclass
class Gate:
    """Lets through to *app*.

    hosts    what a Host header may be, beside the address that the connection came to
    scheme   http or https: what an Origin must begin with
    cookie   its name: with the port, for cookies know no ports
    """

    app: App
    keys: Keys
    hosts: frozenset[str]
    scheme: str
    cookie: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        send = self._dressed(scope, send)
        try:
            self._check(scope, headers)
            scope["visitor"] = self.keys.visitor(self.cookie_of(headers)) if self.cookie_of(headers) else None
            if scope["visitor"] is None and not self._is_open(scope, headers):
                await self._unknown(scope, send)
                return
            await self.app(scope, receive, send)
        except Refusal as refusal:
            await answer(send, refusal.status, f"{refusal.why}\n")

    def cookie_of(self, headers: dict[str, str]) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        """Raise Refusal for what no page of ours would ask."""
        method = scope["method"]
        if method not in METHODS:
            raise Refusal(405, f"{method} is not done here: GET and POST are")
        host = headers.get("host", "")
        if host not in self._hosts(scope):
            raise Refusal(421, "this is no name of the dashboard's; say with --allow-host which other names it has")
        origin = headers.get("origin")
        if origin is not None and origin != f"{self.scheme}://{host}":
            raise Refusal(403, "the request comes from another site")
        if method == "POST" and origin is None:
            raise Refusal(403, "a POST has to say where it comes from (Origin)")
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and not (method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"):
            raise Refusal(403, "the request comes from another site")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_MAX:
            raise Refusal(413, f"more than {BODY_MAX:,} bytes")

    def _hosts(self, scope: Scope) -> frozenset[str]:
        """An address can't be rebound as a name can, so the one that the connection came to is always ours."""
        name, port = (scope.get("server") or ("", None))[:2]
        if not name or port is None:
            return self.hosts
        shown = f"[{name}]" if ":" in name else name
        return self.hosts | {f"{shown}:{port}", *([shown] if port in (80, 443) else [])}

    def _is_open(self, scope: Scope, headers: dict[str, str]) -> bool:
        path: str = scope["path"]
        if path in OPEN or path.startswith("/static/"):
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scope["method"] in ("GET", "HEAD") and scheme.lower() == "bearer" and self.keys.reads(token.strip())

    async def _unknown(self, scope: Scope, send: Send) -> None:
        if scope["method"] != "GET" or scope["path"].endswith(".json") or scope["path"] in ("/live", "/whoami"):
            await answer(send, 401, "sign in: open the URL that the dashboard printed\n")
            return
        query = scope["query_string"].decode("latin-1")
        target = quote(scope["path"] + (f"?{query}" if query else ""), safe="/")
        await answer(send, 303, "", {"location": f"/login?next={quote(target, safe='')}" if scope["path"] != "/" else "/login"})

    def _dressed(self, scope: Scope, send: Send) -> Send:
        async def dressed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                named = {name.lower() for name, _ in message.get("headers", [])}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in named]
                if b"cache-control" not in named:
                    more.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        return dressed


def _headers(scope: Scope) -> dict[str, str]:
    """By name; one that is there twice and decides anything is worth nothing."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        found[key] = "" if key in found and key in ("host", "origin", "content-length", "authorization") else value.decode("latin-1")
    return found


async def answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    """A short answer in plain text."""
    body = text.encode()
    given = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()]})
    await send({"type": "http.response.body", "body": body})
