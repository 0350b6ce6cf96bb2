"""The routes: a page as HTML, as a fragment for htmx, or as JSON; verbs as POST. Starlette, behind the gate.

Pages are made on threads, for sessions block; a page is one transaction that reads. A database that is gone is a page, too.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote
from uuid import UUID

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from supervisor.api.client import Client
from supervisor.core.errors import DatabaseUnavailable, InputInvalid, PermissionMissing, RunUnknown, ScheduleUnknown, SupervisorError
from supervisor.dashboard import draw, health, lists, run, runs, schedule_form, schedules, verbs, workers
from supervisor.dashboard.gate import BODY_MAX, Gate
from supervisor.dashboard.keys import Keys, Visitor, same
from supervisor.dashboard.live import Live
from supervisor.dashboard.page import Asked, Page, url
from supervisor.dashboard.shared import Shared
from supervisor.db.connect import Dsn
from supervisor.db.pages import Look, Rights, Sessions

log = logging.getLogger("pgsupervisor.dashboard")

Maker = Callable[[Look, Asked], Page]
NAV = (("health", "Health"), ("runs", "Runs"), ("queues", "Queues"), ("schedules", "Schedules"), ("workers", "Workers"), ("batches", "Batches"), ("errors", "Errors"), ("versions", "Versions"), ("audit", "Audit"), ("storage", "Storage"))
PAGES: dict[str, Maker] = {
    "health": health.page, "runs": runs.page, "queues": lists.queues, "schedules": schedules.page, "schedule": schedules.one, "schedules/new": schedule_form.new, "schedule/change": schedule_form.change, "workers": workers.page, "batches": lists.batches, "batch": lists.batch, "errors": lists.errors,
    "versions": lists.versions, "audit": lists.audit, "storage": lists.storage, "runs/{run}": run.page, "runs/{run}/steps/{seq}": run.step,
}  # fmt: skip
STATUS = {"run_unknown": 404, "batch_unknown": 404, "queue_unknown": 404, "schedule_unknown": 404, "filter_invalid": 400, "input_invalid": 400, "permission_missing": 403, "payload_refused": 400, "read_timeout": 503,
          "database_unavailable": 503, "schema_missing": 503, "schema_too_old": 503, "schema_too_new": 503}  # fmt: skip
FIELDS_MAX = 2000


@dataclass(frozen=True)
class Setup:
    """What a dashboard is made of. `read_only`: no verbs, whatever the role may."""

    dsn: Dsn
    schema: str
    keys: Keys
    hosts: frozenset[str]
    scheme: str
    cookie: str
    read_only: bool = False
    timeout_s: float = 5.0
    cluster: str = ""
    log_dir: Path | None = None


class Dashboard:
    """Its sessions, its client, its stream of events."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.sessions = Sessions(setup.dsn, setup.schema, timeout_s=setup.timeout_s)
        self.shared: Shared[Response] = Shared()
        self.live = Live(setup.dsn, setup.schema, self.shared.forget)
        self._anybody = secrets.token_urlsafe(32)  # stands in a shared page for the secret of whoever it is given to
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.setup.dsn.conninfo or None, schema=self.setup.schema)
        return self._client

    def app(self) -> Gate:
        routes = [Route("/", self._home), Route("/login", self._login, methods=["GET", "POST"]), Route("/logout", self._logout, methods=["POST"]), Route("/whoami", self._whoami),
                  Route("/live", self._live), Route("/healthz", self._healthz), Route("/static/{digest}/{name:path}", self._static)]  # fmt: skip
        for path, maker in PAGES.items():
            routes += [Route(f"/{path}.json", self._page(maker, "json")), Route(f"/{path}", self._page(maker, "html"))]
        routes += [Route("/runs/{run:path}.json", self._page(run.page, "json")), Route("/runs/{run:path}", self._page(run.page, "html"))]  # keys with a slash
        routes += [Route(path, self._put, methods=["POST"]) for path in ("/schedules/new", "/schedule/change")]
        routes += [Route("/runs/do", self._do_many, methods=["POST"]), Route("/views/{verb}", self._view, methods=["POST"]), *(Route(f"/{kind}s/{{verb}}", self._do_to(kind), methods=["POST"]) for kind in ("queue", "schedule")), Route("/runs/{run}/{verb}", self._do, methods=["POST"])]
        errors: Any = {404: self._not_found, 405: self._not_found, 500: self._broken}
        made = Starlette(routes=routes, exception_handlers=errors)
        return Gate(made, self.setup.keys, self.setup.hosts, self.setup.scheme, self.setup.cookie)

    def close(self) -> None:
        self.live.close()
        self.sessions.close()
        if self._client is not None:
            self._client.close()
        self.setup.keys.close()

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _page(self, maker: Maker, form: str) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            if form == "html" and _is_fragment(request) and request.scope.get("visitor") is not None:
                return await self._same(maker, request)
            return await run_in_threadpool(self._timed, maker, form, request)

        return endpoint

    async def _same(self, maker: Maker, request: Request) -> Response:
        """What an open page asks for by itself: made once for all visitors, with the secret of this one in its forms. All read by the dashboard's one role."""
        made = await self.shared.of(path_of(request), lambda: run_in_threadpool(self._timed, maker, "shared", request))
        body = bytes(made.body).replace(self._anybody.encode(), request.scope["visitor"].csrf.encode())
        return Response(body, made.status_code, media_type="text/html", headers={"retry-after": made.headers["retry-after"]} if "retry-after" in made.headers else None)

    def _timed(self, maker: Maker, form: str, request: Request) -> Response:
        began = time.monotonic()
        try:
            return self._made(maker, form, request)
        finally:
            self.live.spent(time.monotonic() - began)

    def _made(self, maker: Maker, form: str, request: Request) -> Response:
        try:
            with self.sessions.look() as look:
                rights = self._rights(look)
                asked = Asked(request.path_params, _decoded(request.query_params), rights.client, rights.operator, self.setup.log_dir)
                made = maker(look, asked)
        except SupervisorError as error:
            return self._wrong(request, error, form)
        if form == "json":
            return Response(draw.as_document(made.data), made.status, media_type="application/json")
        return self._drawn(request, made, rights, form)

    def _rights(self, look: Look) -> Rights:
        found = look.rights()
        return found._replace(client=False, operator=False) if self.setup.read_only else found

    def _drawn(self, request: Request, page: Page, rights: Rights | None, form: str) -> Response:
        did = verbs.DONE.get(request.query_params.get("did", ""))
        given = {"page": page, **({"rights": rights} if rights is not None else {}), "path_json": path_of(request, ".json"), "did": did}
        text = draw.page(f"{page.template}.jinja", **self._frame(request, form), **given)
        return Response(text, page.status, media_type="text/html")

    def _frame(self, request: Request, form: str = "html") -> dict[str, Any]:
        """*form* shared: for whoever it will be given to."""
        visitor: Visitor | None = request.scope.get("visitor") if form != "shared" else None
        csrf = self._anybody if form == "shared" else visitor.csrf if visitor else ""
        return {"fragment": _is_fragment(request), "path": path_of(request), "visitor": visitor, "csrf": csrf, "navigation": NAV, "cluster": self.setup.cluster, "read_only": self.setup.read_only, "patience_s": self.setup.timeout_s}

    def _wrong(self, request: Request, error: SupervisorError, form: str = "html", back: str = "") -> Response:
        status = STATUS.get(error.code, 409 if request.method == "POST" else 500)
        if isinstance(error, DatabaseUnavailable):
            log.warning("%s", error)
        if form == "json":
            return Response(draw.as_document({"error": {"code": error.code, "message": str(error)}}), status, media_type="application/json")
        what, _, remedy = str(error).rpartition("; ")
        gone = status == 503
        title = _TITLES.get(error.code, "This could not be done")
        text = draw.page("error.jinja", **self._frame(request, form), what=what or remedy, remedy=remedy if what else "", code=error.code, gone=gone, back=back, title=title)
        return Response(text, status, media_type="text/html", headers={"retry-after": "2"} if gone else None)

    async def _not_found(self, request: Request, error: HTTPException) -> Response:
        if request.url.path.endswith(".json"):
            return Response(draw.as_document({"error": {"code": "not_found" if error.status_code == 404 else "method_not_allowed", "message": error.detail}}), error.status_code, media_type="application/json")
        text = draw.page("error.jinja", **self._frame(request), what=f"{request.method} {request.url.path} is none of the dashboard's pages", remedy="", code="", gone=False, back="/", title="Not found")
        return Response(text, error.status_code, media_type="text/html")

    async def _broken(self, request: Request, error: Exception) -> Response:
        """An error of ours, whose traceback the server logs."""
        if request.url.path.endswith(".json"):
            return Response(draw.as_document({"error": {"code": "internal", "message": f"{type(error).__name__}, where no error was expected; where it comes from stands in the dashboard's log"}}), 500, media_type="application/json")
        text = draw.page("error.jinja", **self._frame(request), what=f"{type(error).__name__}, where no error was expected", remedy="Where it comes from stands in the dashboard's log.", code="", gone=False, back="/", title="An error of the dashboard's own")
        return Response(text, 500, media_type="text/html")

    # ── coming in ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _home(self, request: Request) -> Response:
        return RedirectResponse("/health", 303)

    async def _login(self, request: Request) -> Response:
        following = _own_path(request.query_params.get("next", ""))
        if request.method == "GET":
            return Response(draw.page("login.jinja", **self._frame(request), following=following, wrong=False), media_type="text/html")
        form = dict(await _form(request))
        came = self.setup.keys.exchange(form.get("token", ""), form.get("name", ""))
        if came is None:
            await asyncio.sleep(0.2)
            return Response(draw.page("login.jinja", **self._frame(request), following=_own_path(form.get("next", "")), wrong=True), 403, media_type="text/html")
        answer = RedirectResponse(_own_path(form.get("next", "")), 303)
        answer.set_cookie(self.setup.cookie, came[0], httponly=True, samesite="strict", secure=self.setup.scheme == "https", path="/")
        return answer

    async def _logout(self, request: Request) -> Response:
        _checked(request, dict(await _form(request)))
        self.setup.keys.leave(request.cookies.get(self.setup.cookie, ""))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self.setup.cookie, path="/", httponly=True, samesite="strict", secure=self.setup.scheme == "https")
        return answer

    async def _whoami(self, request: Request) -> Response:
        """Whether this browser is signed in: a link from elsewhere comes without the cookie, and the login page asks again from here."""
        return Response(status_code=204)

    async def _healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC_FILES or request.path_params["digest"] != draw.digest(name):
            raise HTTPException(404)
        return FileResponse(draw.STATIC / name, headers={"cache-control": "public, max-age=31536000, immutable"})

    async def _live(self, request: Request) -> Response:
        if self.live.full:
            return PlainTextResponse("too many open pages\n", 503, {"retry-after": "10"})
        return StreamingResponse(self.live.events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    # ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _do(self, request: Request) -> Response:
        form = dict(await _form(request))
        visitor = _checked(request, form)
        return await run_in_threadpool(self._done, request, form, visitor)

    def _done(self, request: Request, form: dict[str, str], visitor: Visitor) -> Response:
        which, verb = request.path_params["run"], request.path_params["verb"]
        try:
            self._may_write()
            run_id, reason = _uuid(which), verbs.reason_of(form)
            with self.sessions.acting(f"{verb.replace('_', ' ')} of run {run_id}") as conn:
                goes_on = verbs.do(self.client.within(conn), verbs.Told(conn, self.setup.schema, run_id, form, reason, visitor.name), verb)
        except SupervisorError as error:
            return self._wrong(request, error, back=f"/runs/{which}")
        self.live.tell("changed")
        return RedirectResponse(f"/runs/{goes_on}?did={verb}" if verb in verbs.DONE else f"/runs/{goes_on}", 303)

    def _do_to(self, kind: str) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            form = dict(await _form(request))
            return await run_in_threadpool(self._done_to, kind, request, form, _checked(request, form))

        return endpoint

    def _done_to(self, kind: str, request: Request, form: dict[str, str], visitor: Visitor) -> Response:
        """A verb on a queue or a schedule, which a field of the form names."""
        verb, name = request.path_params["verb"], verbs.name_of(form)
        run = verbs.run_of(form)
        back = f"/runs/{run}" if run else "/queues" if kind == "queue" else url("/schedule", name=name)
        try:
            self._may_write()
            reason = verbs.reason_of(form)
            with self.sessions.acting(f"{verb} of {kind} {name!r}") as conn:
                client = self.client.within(conn)
                did = verbs.do_queue(client, verb, name, reason, visitor.name) if kind == "queue" else verbs.do_schedule(client, verb, name, form, reason, visitor.name)
        except SupervisorError as error:
            return self._wrong(request, error, back=back)
        self.live.tell("changed")
        if run:
            return RedirectResponse(url(back, did=f"{did}_queue" if did == "resume" else did), 303)
        if kind == "queue" or did == "delete":
            return RedirectResponse(url(f"/{kind}s", did=did), 303)
        return RedirectResponse(url("/schedule", name=name, did=did), 303)

    async def _put(self, request: Request) -> Response:
        form = dict(await _form(request))
        return await run_in_threadpool(self._puts, request, form, _checked(request, form))

    def _puts(self, request: Request, form: dict[str, str], visitor: Visitor) -> Response:
        """A schedule is made or changed, or what would come of it is shown: the same, rolled back. It is saved only as it was looked at."""
        is_new, draft = request.url.path == "/schedules/new", None
        try:
            self._may_write()
            with self.sessions.look() as look:
                rights = self._rights(look)
                draft = schedule_form.typed(look, Asked(may_act=rights.client, may_operate=rights.operator), form, is_new)
            saves = form.get("do") == "save" and draft.seen == draft.timing
            reason = schedule_form.reason_for(draft) if saves else ""
            with self.sessions.acting(f"schedule {draft.name!r}") as conn, conn.transaction() as part:
                found = schedule_form.put(self.client.within(conn), draft, reason, visitor.name)
                part.force_rollback = not saves or found is None
        except (PermissionMissing, ScheduleUnknown) as error:
            return self._wrong(request, error, back="/schedules")
        except SupervisorError as error:  # of the moment: what was typed stays
            draft = draft or schedule_form.drafted(form, is_new)
            draft.wrong[schedule_form.WHOLE] = str(error)
            return self._drawn(request, replace(schedule_form.page_of(draft), status=STATUS.get(error.code, 409)), None, "html")
        if not saves or found is None:
            return self._drawn(request, schedule_form.page_of(draft, None, found), rights, "html")
        self.live.tell("changed")
        return RedirectResponse(url("/schedule", name=draft.name, did="create" if is_new else "change"), 303)

    async def _view(self, request: Request) -> Response:
        form = dict(await _form(request))
        return await run_in_threadpool(self._viewed, request, form, _checked(request, form))

    def _viewed(self, request: Request, form: dict[str, str], visitor: Visitor) -> Response:
        """A filter of runs is kept for all, or no longer."""
        text = form.get("q", "").strip()
        try:
            self._may_write()
            with self.sessions.acting("this") as conn:
                verbs.keep(conn, self.setup.schema, request.path_params["verb"], form.get("name", "").strip(), text, visitor.name)
        except SupervisorError as error:
            return self._wrong(request, error, back="/runs")
        self.live.tell("changed")
        return RedirectResponse(url("/runs", q=text), 303)

    async def _do_many(self, request: Request) -> Response:
        fields = await _form(request)
        form = dict(fields)
        visitor = _checked(request, form)
        picked = [value for name, value in fields if name == "run"]
        return await run_in_threadpool(self._done_many, request, form, picked, visitor)

    def _done_many(self, request: Request, form: dict[str, str], picked: list[str], visitor: Visitor) -> Response:
        try:
            self._may_write()
            many = _many(form, picked)
            many.asked  # noqa: B018 - a filter that can't be read is refused before anything is asked
            given = {"many": many, "form": form, "picked": picked, "label": dict(verbs.BULK)[many.verb]}
            if form.get("sure") != "yes":
                with self.sessions.look() as look:
                    table = runs.dry(runs.counted(look, many))
                return Response(draw.page("bulk.jinja", **self._frame(request), **given, table=table, came=None), media_type="text/html")
            reason = verbs.reason_of(form)
            with self.sessions.writing() as conn:
                came = verbs.do_many(conn, self.setup.schema, many, reason, visitor.name, self.setup.timeout_s)
        except SupervisorError as error:
            return self._wrong(request, error, back="/runs")
        self.live.tell("changed")
        return Response(draw.page("bulk.jinja", **self._frame(request), **given, table=None, came=came), media_type="text/html")

    def _may_write(self) -> None:
        if self.setup.read_only:
            raise PermissionMissing("this dashboard only shows (--read-only); use the command line, or start it without")


STATIC_FILES = frozenset(("app.js", "app.css", "icon.svg", "vendor/htmx-4.0.1.min.js", "vendor/uplot-1.6.32.min.js", "vendor/uplot-1.6.32.min.css"))
_TITLES = {"database_unavailable": "The database does not answer", "run_unknown": "There is no such run", "queue_unknown": "There is no such queue", "schedule_unknown": "There is no such schedule", "permission_missing": "The role may not do this", "read_timeout": "This took too long", "run_locked": "Somebody has it locked", "schema_missing": "The schema is missing"}


def _is_fragment(request: Request) -> bool:
    """Whether a page that is open asks, for its content alone."""
    return request.headers.get("hx-request") == "true"


def path_of(request: Request, suffix: str = "") -> str:
    """What was asked, as a link; *suffix* behind the path."""
    return request.url.path + suffix + (f"?{request.url.query}" if request.url.query else "")


def _decoded(query: Any) -> dict[str, str]:
    """The query by name; the last of each. What PostgreSQL can't be sent is no text."""
    return {name: value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() for name, value in query.multi_items()}


async def _form(request: Request) -> list[tuple[str, str]]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX:
            raise HTTPException(413, f"more than {BODY_MAX:,} bytes")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "a form is wanted: application/x-www-form-urlencoded")
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS_MAX, encoding="utf-8", errors="strict")
    except ValueError:
        raise HTTPException(400, "the form can't be read") from None


def _checked(request: Request, form: dict[str, str]) -> Visitor:
    """Who sent the form, if it is one of ours. The gate has seen to cookie and origin before."""
    visitor: Visitor | None = request.scope.get("visitor")
    if visitor is None:
        raise HTTPException(401, "sign in first")
    if not same(form.get("csrf", ""), visitor.csrf):
        raise HTTPException(403, "the form is not one of this page's, or from before the dashboard was restarted: load the page again")
    return visitor


def _own_path(given: str) -> str:
    """A path of this dashboard, or its first page: never another site."""
    path = unquote(given)
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and path.isascii() else "/health"


def _uuid(which: str) -> UUID:
    try:
        return UUID(which)
    except ValueError:
        raise RunUnknown(which) from None


def _many(form: dict[str, str], picked: list[str]) -> verbs.Many:
    if form.get("verb") not in verbs.STATES:
        raise InputInvalid("verb", f"there is no verb {form.get('verb', '')[:40]!r}")
    if len(picked) > runs.PICKED_MAX:
        raise InputInvalid("run", f"{len(picked):,} runs were picked and {runs.PICKED_MAX:,} are the most; use a filter")
    after = form.get("after", "")
    return verbs.Many(form["verb"], [_uuid(each) for each in picked], form.get("q", ""), _uuid(after) if after else None)
