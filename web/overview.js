// The overview: is everything running, what failed, what runs now.

import { executionPath, get, jobPath, list, query } from "./api.js";
import { badge, el, heading, panel, svg, visible } from "./dom.js";
import { firstJob } from "./jobs.js";
import { timeline } from "./timeline.js";
import { ago, at, brief, parse } from "./time.js";

const rangeAge = 10_000; // milliseconds after which what costs more than a count is read again
const runningRows = 12;
const failureRows = 6;
const marksMax = 1_000;

export const title = () => "Overview";

// aged remembers what read answers for a time.
function aged(read, age) {
  let value, at = -Infinity;
  return async () => {
    if (Date.now() - at > age) [value, at] = [await read(), Date.now()];
    return value;
  };
}

const stats = aged(async () => (await get("stats")).stats, rangeAge);

const ran = aged(() => get("executions" + query({ limit: marksMax })), rangeAge);

const coming = aged(() => get("upcoming" + query({ limit: marksMax })), rangeAge);

const failures = aged(() => get("executions" + query({
  outcome: "bad", limit: failureRows, output_size_limit: 4000, start: new Date(Date.now() - 86_400_000).toISOString(),
})), rangeAge);

export async function load() {
  const [summary, busy, days, past, next, failed] = await Promise.all([get("summary"), list("busy"), stats(), ran(), coming(), failures()]);
  return { summary, busy: busy.rows, days, past, next, failed };
}

export function show({ summary: { jobs: c, running, today, unrun }, busy, days, past, next, failed }) {
  const failing = c.failed + c.partially_failed;
  return [
    heading("Overview"),
    c.total === 0 && firstJob(),
    el("div", { class: "tiles" },
      tile(c.total, `jobs, ${c.disabled.toLocaleString()} disabled`, c.disabled ? "#/jobs?disabled=true" : "#/jobs"),
      tile(running, "running now", "#running", running && "busy"),
      tile(failing, "jobs failing", c.failed || !failing ? "#/jobs?status=failed" : "#/jobs?status=partially_failed", failing && "bad"),
      tile(c.untriggered, "never ran", "#/jobs?status=untriggered"),
      tile(today.missed, "ticks missed today", "#unrun", today.missed && "bad"),
      el("div", { class: "tile" }, el("b", null, share(today)), " ", el("span", null, `of ${(today.success_count + today.failed_count).toLocaleString()} runs good today`))),
    el("div", { class: "columns" },
      timeline(past, next, marksMax),
      panel("Runs a day", null, chart(days)),
      panel("Running now", { id: "running" }, runningList(busy)),
      panel("Last failures", null, failureList(failed)),
      panel("Why it did not run", { id: "unrun" }, unrunList(unrun))),
  ];
}

// share is rounded down: not all is good before all is.
function share({ success_count: good, failed_count: bad }) {
  return good + bad === 0 ? "–" : `${(Math.floor(good / (good + bad) * 10_000) / 100).toLocaleString()} %`;
}

export function tile(n, words, href, kind) {
  return el("a", { class: "tile " + (kind || ""), href }, el("b", null, n.toLocaleString()), " ", el("span", null, words));
}

// chart draws a bar a day: what went well, and on top of it what failed.
export function chart(days) {
  const most = Math.max(1, ...days.map((d) => d.success_count + d.failed_count));
  const good = days.reduce((sum, d) => sum + d.success_count, 0);
  const bad = days.reduce((sum, d) => sum + d.failed_count, 0);
  const words = `${good.toLocaleString()} runs went well and ${bad.toLocaleString()} failed in the last ${days.length} days`;
  return el("figure", null,
    svg("svg", { viewBox: `0 0 ${days.length * 10} 100`, preserveAspectRatio: "none", class: "chart", role: "img", "aria-label": words },
      days.map((d, i) => bar(d, i * 10, 100 / most))),
    el("figcaption", null, el("span", null, "30 days ago"), el("span", null, `${words.split(" in ")[0]}`), el("span", null, "today")));
}

function bar(day, x, unit) {
  const visibleHeight = (n) => (n ? Math.max(1.5, n * unit) : 0); // one failure among thousands shows
  const bad = visibleHeight(day.failed_count);
  const good = Math.min(visibleHeight(day.success_count), 100 - bad);
  return svg("g", null,
    svg("title", null, `${day.date.slice(0, 10)}: ${day.success_count} good, ${day.failed_count} failed`),
    svg("rect", { x, y: 0, width: 10, height: 100, class: "back" }),
    svg("rect", { x: x + 1, y: 100 - good, width: 8, height: good, class: "good" }),
    svg("rect", { x: x + 1, y: 100 - good - bad, width: 8, height: bad, class: "bad" }));
}

function runningList(busy) {
  if (busy.length === 0) return el("p", { class: "quiet" }, "Nothing runs.");
  return [
    el("ul", { class: "plain" }, busy.slice(0, runningRows).map((e) => {
      const started = parse(e.started_at);
      return el("li", null,
        el("a", { href: `#/${executionPath(e.job_name, e.id)}` }, e.job_name), " on ", e.node_name,
        el("div", { class: "quiet" }, "for ", brief(Date.now() - started), ", since ", at(started), e.attempt > 1 && `, attempt ${e.attempt}`));
    })),
    busy.length > runningRows && el("p", { class: "quiet" }, `and ${(busy.length - runningRows).toLocaleString()} more`),
  ];
}

// failureList shows how each ended and the first line of what it printed, which
// are the first two lines of its output.
function failureList(failed) {
  if (failed.length === 0) return el("p", { class: "quiet" }, "None in the last 24 hours.");
  return el("ul", { class: "plain" }, failed.map((e) => {
    const line = (e.output ?? "").split("\n").filter((l) => l.trim()).slice(0, 2).join(" · ");
    return el("li", null,
      el("a", { href: `#/${executionPath(e.job_name, e.id)}` }, e.job_name), " ", badge(e.outcome), " ",
      el("span", { class: "quiet" }, ago(parse(e.finished_at)), " on ", e.node_name),
      line && el("code", { class: "line" }, visible(line)));
  }));
}

function unrunList(unrun) {
  if (unrun.length === 0) return el("p", { class: "quiet" }, "Everything that fell due ran.");
  return el("ul", { class: "plain" }, unrun.map((t) => el("li", null,
    el("a", { href: "#/" + jobPath(t.job_name) }, t.job_name), " ", badge(t.outcome), " ",
    el("span", { class: "quiet" }, at(parse(t.due)), t.count > 1 && `, ${t.count.toLocaleString()} times`),
    el("div", null, t.reason))));
}

export const actions = {};
