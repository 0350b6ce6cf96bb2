"""Two hundred hostile strings, and a database that has them in every field that a page shows: markup, what ends an attribute or a template, what turns text around, what has meaning elsewhere."""

from __future__ import annotations

import itertools
import json
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supervisor.host import log_files, log_lines
from tests.harness import Database

_MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "<iframe src=//evil.example></iframe>", "<style>*{display:none}</style>", "<!-- ", "-->",
    "]]>", "</textarea><script>alert(1)</script>", "</pre><b>", "</title><script>alert(1)</script>", "</option></select><b>", "<a href=javascript:alert(1)>x</a>", "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0>", "<form action=//evil.example>", "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>", "<div hx-get=/logout hx-trigger=load>", "<template>",
    "<object data=//evil.example>",
]  # fmt: skip
_ATTRIBUTES = ['" onmouseover="alert(1)', "' onmouseover='alert(1)", "\" autofocus onfocus=alert(1) x=\"", "` onx=`", "\"><script>alert(1)</script>", "'><img src=x onerror=alert(1)>", '" style="position:fixed', "javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "//evil.example/", "/\\evil.example"]
_TEMPLATES = ["{{ 7*7 }}", "{% include '/etc/passwd' %}", "{{ self.__init__.__globals__ }}", "${7*7}", "#{7*7}", "<%= 7*7 %>", "{{'a'|safe}}", "%s%s%n", "%00", "{0.__class__}", "$1 $2", ":'p1'", "\\set x", "'; drop table supervisor.task; --", "\\'; select 1", "$$ || $$"]
_INVISIBLE = ["a\u202eb", "a\u2066b\u2069", "\u200b\u200d", "\ufeff", "\u2028line", "\u2029", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x07\x08\x0b\x0c", "\x7f", "\x80\x9b", "tab\there", "line\nbreak", "\r\nSet-Cookie: a=b", "\ufff9x\ufffa", "\U000e0041\U000e0042", "\u00ad", "\u061c", "\x01\x02\x03"]
_ODD = ["", " ", "0", "null", "true", "NaN", "../../etc/passwd", "?q=1&x=2#y", "a&amp;b", "&lt;b&gt;", "&#x3c;script&#x3e;", "ﷺ" * 20, "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢", "🧨" * 30, "x" * 180, "שלום", "مرحبا", "ＡＢＣ", "con", "order by started", "constructor", "__proto__", "toString"]
_BASE = [*_MARKUP, *_ATTRIBUTES, *_TEMPLATES, *_INVISIBLE, *_ODD]
# and combinations of them, so that there are two hundred; all differ, none is too long for a key, none is empty
HOSTILE = list(dict.fromkeys([*_BASE, *(f"{a}{b}"[:190] for a, b in itertools.product(_ATTRIBUTES, [*_INVISIBLE, *_MARKUP])), *(f"{a}{b}" for a, b in itertools.product(_MARKUP, _INVISIBLE))]))
HOSTILE = [text for text in HOSTILE if text.strip() and not text[-1].isspace()][:200]
DENSE = 10  # so many of them does every tenth run have


class Hostile:
    """A database with nothing else in it: runs, steps, errors, messages, people and workers that are called like that."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.runs: dict[str, str] = {}
        with database.connect() as conn:
            for n, text in enumerate(HOSTILE):
                self.runs[text] = str(self._fill(conn, n, text))
            for first in range(0, len(HOSTILE), DENSE):
                for n, text in enumerate(HOSTILE[first : first + DENSE]):
                    self._more(conn, self.runs[HOSTILE[first]], 10 + n, text)
            plain = [text for text in HOSTILE if not any(unicodedata.category(char) == "Cc" for char in text)]  # what a name that somebody types may have
            conn.execute("insert into supervisor.saved_view (name, filter, login, actor) select distinct on (left(x, 60)) left(x, 60), x, x, x from unnest(%s::text[]) x", (plain[::4],))
            conn.execute("insert into supervisor.queue (name) select distinct left(x, 200) from unnest(%s::text[]) x on conflict do nothing", (HOSTILE,))
            conn.execute("insert into supervisor.queue_pause (queue, paused_by, reason) select q.id, q.name, q.name from supervisor.queue q where q.id %% 4 = 0", ())
            conn.execute(
                "insert into supervisor.schedule (name, workflow, every_us, queue, input, error, paused_at, paused_by, paused_reason, due_at)"
                " select x, x, 1000000, x, jsonb_build_object(x, x), x, case when n %% 2 = 0 then now() end, x, x, 'infinity' from unnest(%s::text[]) with ordinality as u (x, n)", (HOSTILE,),
            )
            conn.execute("insert into supervisor.audit (run_id, verb, login, actor, reason, details) select supervisor.new_id(), 'schedule_pause', x, x, x, jsonb_build_object('schedule', x, x, x) from unnest(%s::text[]) x", (HOSTILE,))

    def log(self, folder: Path) -> Path:
        """The logs of a host that had all these runs: everything in a line is called like that, but the run."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / log_files.NAME).open("wb") as out:
            for first in range(0, len(HOSTILE), DENSE):
                for text in HOSTILE[first : first + DENSE]:
                    raised = log_lines.Raised(text, text, text)
                    line = log_lines.Line(datetime.now(UTC), text[:20], text, text, text, 1, run=self.runs[HOSTILE[first]], workflow=text, step=text, seq=1, exception=raised, stack=text, extra={text: text})
                    out.write(log_lines.as_json(line))
        return folder

    def _more(self, conn: Any, run: str, seq: int, text: str) -> None:
        """One of several that one run has."""
        payload, error = json.dumps(text).encode(), json.dumps({"type": text, "message": text, "traceback": f"  File {text}\n"}).encode()
        conn.execute("insert into supervisor.step values (%s, now(), now(), %s, %s, 1, 1, %s, %s, %s)", (run, seq, seq, 1 + seq % 2, text, error if seq % 2 else payload))
        conn.execute("insert into supervisor.attempt values (%s, %s, 1, 1, now(), now(), now(), 1, %s, %s, %s)", (run, seq, text, error, text))
        conn.execute("insert into supervisor.publication values (%s, now(), %s, %s, %s) on conflict do nothing", (run, seq, text[:200], payload))
        conn.execute("insert into supervisor.message values (%s, 1, nextval('supervisor.message_n'), now(), %s, %s, %s) on conflict do nothing", (run, text, text, payload))
        conn.execute("insert into supervisor.update_request values (%s, %s, now(), %s, %s, %s, now(), %s) on conflict do nothing", (run, seq, text, text, payload, error))
        conn.execute("insert into supervisor.audit (run_id, n, at, verb, login, actor, reason, details) values (%s, %s, now(), %s, %s, %s, %s, jsonb_build_object(%s::text, %s::text))", (run, -seq, *[text] * 6))
        conn.execute("insert into supervisor.beat values (%s, %s, 1, now(), %s)", (run, seq, payload))

    def _fill(self, conn: Any, n: int, text: str) -> Any:
        def one(query: str, *values: object) -> Any:
            return conn.execute(query, values).fetchone()[0]

        payload, error = json.dumps({"value": text, text: [text]}), json.dumps({"type": text, "message": text, "traceback": f"  File {text}\n", "args": [text]}).encode()
        queue = one("insert into supervisor.queue (name) values (%s) returning id", text)
        workflow = one("insert into supervisor.workflow (name, queue) values (%s, %s) returning id", text, queue)
        conn.execute("insert into supervisor.workflow_version (workflow, version, source) values (%s, %s, %s)", (workflow, text, text))
        run = one("select supervisor.start(%s, key => %s, attributes => jsonb_build_object('said', %s::text), batch => %s)", text, text, text, text)
        conn.execute("update supervisor.run set input = %s where run_id = %s", (payload.encode(), run))
        conn.execute("insert into supervisor.worker (boot, host, pid, supervisor, dead_at, death) values (gen_random_uuid(), %s, 1, gen_random_uuid(), now(), %s)", (text, text))
        for seq, kind, status, result in ((0, 1, 1, payload.encode()), (1, 1, 2, error), (2, 2, 1, None)):
            conn.execute("insert into supervisor.step values (%s, now(), now() + interval '2 s', %s, %s, 1, %s, %s, %s, %s)", (run, seq, seq, kind, status, text, result))
        conn.execute("insert into supervisor.attempt values (%s, 1, 1, 1, now(), now(), now(), 1, %s, %s, %s), (%s, 3, 1, 1, now(), now(), now() + interval '1 h', 1, %s, %s, %s)", (run, text, error, text) * 2)
        conn.execute("insert into supervisor.publication values (%s, now(), 1, %s, %s)", (run, text[:200], payload.encode()))
        conn.execute("insert into supervisor.beat values (%s, 4, 1, now(), %s)", (run, payload.encode()))
        conn.execute("insert into supervisor.update_request values (%s, 1, now(), %s, %s, %s, now(), %s)", (run, text, text, payload.encode(), error))
        controls = any(unicodedata.category(char) == "Cc" for char in text)  # which the name of a signal may not have
        one("select supervisor.signal(%s, %s, %s::jsonb, %s)", run, f"s{n}" if controls else text, payload, f"s{n}" if controls else text)
        if n % 3 == 0:
            one("select supervisor.pause(%s, %s, %s)", run, text, text)
        elif n % 3 == 1:
            one("select supervisor.cancel(%s, %s, actor => %s)", run, text, text)
        else:
            detail = json.dumps({"signals": [text], "waits_for": [text]}) if n % 2 else text
            conn.execute("update supervisor.task set wait_kind = 11, ready_at = 'infinity', wait_detail = %s, step = %s, seq = 4, version = %s where run_id = %s", (detail, text, text, run))
        return run
