// The overview: is everything running, what failed, what runs now.

import { executionPath, get, jobPath, list, query } from "./api.js";
import { badge, el, heading, panel, svg } from "./dom.js";
import { firstJob } from "./jobs.js";
import { ago, at, brief, parse } from "./time.js";

const countAge = 15_000; // milliseconds after which counts are read again
const statsAge = 60_000;
const runningRows = 12;
const failingRows = 6;

export const title = () => "Overview";

// aged remembers what read answers for a time.
function aged(read, age) {
  let value, at = -Infinity;
  return async () => {
    if (Date.now() - at > age) [value, at] = [await read(), Date.now()];
    return value;
  };
}

const count = async (filter) => (await list("jobs" + query({ ...filter, _start: 0, _end: 0 }))).total;

const counts = aged(async () => {
  const [all, failed, partly, good, never, disabled] = await Promise.all([
    count({}), count({ status: "failed" }), count({ status: "partially_failed" }), count({ status: "success" }),
    count({ status: "untriggered" }), count({ disabled: "true" }),
  ]);
  return { all, failed, partly, good, never, disabled };
}, countAge);

const stats = aged(async () => (await get("stats")).stats, statsAge);

const failing = aged(async () => (await list("jobs" + query({ status: "failed", _sort: "last_error", _order: "DESC", _start: 0, _end: failingRows }))).rows, countAge);

export async function load() {
  const [busy, tally, days, failed] = await Promise.all([list("busy"), counts(), stats(), failing()]);
  return { busy: busy.rows, counts: tally, days, failed };
}

export function show({ busy, counts: c, days, failed }) {
  return [
    heading("Overview"),
    c.all === 0 && firstJob(),
    el("div", { class: "tiles" },
      tile(c.all, "jobs", "#/jobs"),
      tile(busy.length, "running now", "#running", busy.length && "busy"),
      tile(c.failed + c.partly, "jobs failing", "#/jobs?status=failed", c.failed + c.partly && "bad"),
      tile(c.good, "jobs good", "#/jobs?status=success"),
      tile(c.never, "never ran", "#/jobs?status=untriggered"),
      tile(c.disabled, "disabled", "#/jobs?disabled=true")),
    el("div", { class: "columns" },
      panel("Runs a day, last 30 days", null, chart(days)),
      panel("Running now", { id: "running" }, runningList(busy)),
      panel("Failing jobs", null, failingList(failed, c.failed))),
  ];
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

function failingList(failed, total) {
  if (failed.length === 0) return el("p", { class: "quiet" }, "No job fails.");
  return [
    el("ul", { class: "plain" }, failed.map((j) => el("li", null,
      el("a", { href: "#/" + jobPath(j.name) }, j.displayname || j.name), " ", badge(j.status),
      el("div", { class: "quiet" }, parse(j.last_error) && ago(parse(j.last_error)))))),
    total > failed.length && el("p", null, el("a", { href: "#/jobs?status=failed" }, `all ${total.toLocaleString()}`)),
  ];
}

export const actions = {};
