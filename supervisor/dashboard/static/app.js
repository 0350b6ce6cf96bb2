// Small things that HTML alone does not do: signing in by a URL's fragment, hearing that something changed, charts, choosing all.
"use strict";

(() => {
  const login = document.querySelector("[data-login]");
  if (login) {
    const form = login.querySelector("form");
    const token = location.hash.slice(1);
    if (token) {
      history.replaceState(null, "", location.pathname + location.search);  // it stays in no history
      form.elements.token.value = token;
      form.requestSubmit();
    } else {
      // a link from elsewhere came without the cookie, for it is SameSite=Strict; from here it goes with it
      fetch("/whoami").then((answer) => { if (answer.ok) location.replace(form.elements.next.value || "/"); }).catch(() => {});
    }
    return;
  }

  // ── live ──
  const pulse = document.getElementById("pulse");
  let source = null;
  const say = (state, text) => { if (pulse) { pulse.dataset.state = state; pulse.textContent = text; } };
  // a page that takes long to make is asked for less often: a tenth of the time at most goes into it
  let nextAt = 0, waiting = 0, askedAt = 0;
  const changed = () => {
    clearTimeout(waiting);
    const wait = nextAt - performance.now();
    if (wait > 0) { waiting = setTimeout(changed, wait); return; }
    nextAt = performance.now() + 10000;  // unless it comes sooner
    askedAt = performance.now();
    document.body.dispatchEvent(new CustomEvent("pgs:changed"));
  };
  const came = () => { nextAt = performance.now() + Math.max(400, 10 * (performance.now() - askedAt)); };
  document.addEventListener("htmx:after:request", came);  // before the swap, after which its element may be another one
  const open = () => {
    if (source || document.hidden || !pulse) return;
    source = new EventSource("/live");
    source.addEventListener("open", () => say("on", "live"));
    source.addEventListener("changed", () => { if (!document.hidden) changed(); });
    source.addEventListener("lost", () => say("lost", "the database does not answer"));
    source.addEventListener("back", () => { say("on", "live"); changed(); });
    source.addEventListener("error", () => say("off", "the dashboard does not answer"));
  };
  const close = () => { if (source) { source.close(); source = null; } };
  document.addEventListener("visibilitychange", () => { if (document.hidden) { close(); } else { open(); changed(); } });
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();

  // ── charts ──
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const made = new WeakMap();
  const draw = () => document.querySelectorAll("[data-chart]").forEach((figure) => {
    const plot = figure.querySelector(".plot");
    if (!plot || typeof uPlot === "undefined" || made.get(plot) === figure.dataset.chart) return;
    made.set(plot, figure.dataset.chart);
    const { times, lines } = JSON.parse(figure.dataset.chart);
    plot.replaceChildren();
    const names = ["--line-1", "--line-2", "--line-3"];
    const clock = (at) => new Date(at * 1000).toISOString().slice(11, 16);
    const axis = { stroke: colour("--dim"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { stroke: colour("--rule"), width: 1 } };
    new uPlot({
      width: plot.clientWidth || 600, height: 180, cursor: { drag: { x: false, y: false } },
      series: [{ label: "UTC", value: (_, at) => at === null ? "--" : clock(at) }, ...lines.map(([label], n) => ({ label, stroke: colour(names[n]), width: 2, dash: [[], [6, 3], [2, 3]][n], points: { show: times.length < 40 } }))],
      axes: [{ ...axis, values: (_, at) => at.map(clock) }, { ...axis, size: 60 }], scales: { y: { range: (_, low, high) => [0, Math.max(high, 1)] } },
    }, [times, ...lines.map(([, values]) => values)], plot);
  });
  draw();
  document.body.addEventListener("htmx:after:swap", draw);
  addEventListener("resize", () => { document.querySelectorAll(".plot").forEach((plot) => made.delete(plot)); draw(); });

  // ── a span of time, drawn over the bars, is looked at larger ──
  const spanAt = (journal, x) => {  // thousandths of a bar's width as seconds after the run's start
    const pieces = JSON.parse(journal.dataset.pieces);
    const [begin, end, left, right] = pieces.find((piece) => x <= piece[3]) || pieces[pieces.length - 1];
    return Number(journal.dataset.begin) + begin + (end - begin) * (right > left ? (x - left) / (right - left) : 0);
  };
  let drawn = null;  // from where, over which bar
  const placed = (event) => { const box = drawn.svg.getBoundingClientRect(); return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * 1000; };
  document.addEventListener("pointerdown", (event) => {
    const svg = event.target.closest && event.target.closest(".journal .lane svg");
    if (svg && event.button === 0) { drawn = { svg, brush: null }; drawn.from = drawn.to = placed(event); }
  });
  document.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    drawn.to = placed(event);
    if (!drawn.brush && Math.abs(drawn.to - drawn.from) > 8) {
      drawn.brush = document.createElement("div");
      drawn.brush.className = "brush";
      document.body.append(drawn.brush);
    }
    if (drawn.brush) {
      const box = drawn.svg.getBoundingClientRect(), list = drawn.svg.closest(".entries").getBoundingClientRect();
      const [left, right] = [drawn.from, drawn.to].sort((a, b) => a - b).map((x) => box.left + box.width * x / 1000);
      Object.assign(drawn.brush.style, { left: `${left}px`, width: `${right - left}px`, top: `${Math.max(list.top, 0)}px`, height: `${Math.min(list.bottom, innerHeight) - Math.max(list.top, 0)}px` });
    }
  });
  document.addEventListener("pointerup", () => {
    const done = drawn;
    drawn = null;
    if (!done || !done.brush) return;
    done.brush.remove();
    addEventListener("click", (event) => { event.preventDefault(); event.stopPropagation(); }, { capture: true, once: true });  // it was no click on the entry
    const journal = done.svg.closest(".journal");
    const [begin, end] = [done.from, done.to].sort((a, b) => a - b).map((x) => spanAt(journal, x));
    location.assign(`${location.pathname}?during=${begin.toFixed(6)},${Math.max(end, begin + 0.00001).toFixed(6)}#journal`);
  });
  document.addEventListener("pointercancel", () => { if (drawn && drawn.brush) drawn.brush.remove(); drawn = null; });

  // ── by keyboard, and all at once ──
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLElement && event.target.matches("input, textarea, select");
    const filter = document.getElementById("q");
    if (event.key === "/" && !typing && filter) { event.preventDefault(); filter.focus(); filter.select(); }
    const plain = !typing && !event.ctrlKey && !event.altKey && !event.metaKey;
    const move = plain && [...document.querySelectorAll("a[data-key]")].find((link) => link.dataset.key === event.key);
    if (move) { event.preventDefault(); location.assign(move.href); }
    if (event.key === "Escape" && event.target instanceof HTMLElement) {
      const action = event.target.closest("details.action[open]");
      if (action) { action.open = false; action.querySelector("summary").focus(); }
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches && event.target.matches("[data-all]"))
      event.target.closest("table").querySelectorAll('input[name="run"]').forEach((box) => { box.checked = event.target.checked; });
  });
})();
