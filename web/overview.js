// The overview: is everything running, what failed, what runs next, and why
// something did not run.

import { executionPath, get, jobPath, list, permitted, query } from "./api.js";
import { badge, el, heading, panel, svg, visible } from "./dom.js";
import { firstJob, lastRuns } from "./jobs.js";
import { may } from "./rights.js";
import { timeline } from "./timeline.js";
import { ago, at, duration, now, parse, since } from "./time.js";
import { ending } from "./job.js";

const listRows = 5;
const marksMax = 1_000;

export const title = () => "Overview";

export const pace = 5_000;

const lastDay = () => new Date(now() - 86_400_000).toISOString();

// running are the runs that go on, the oldest first, and how long such runs took before.
async function running() {
  const { rows, total } = await permitted(list("busy"), {});
  if (!rows) return null;
  const busy = rows.toSorted((a, b) => parse(a.started_at) - parse(b.started_at)).slice(0, listRows);
  const runs = await lastRuns([...new Set(busy.map((e) => e.job_name))]);
  return { busy: busy.map((e) => ({ ...e, usual: usual(runs.get(e.job_name) ?? []) })), total };
}

// usual is the middle of what good runs took, in milliseconds; NaN if there are none.
function usual(runs) {
  const took = runs.filter((r) => r.outcome === "success").map((r) => parse(r.finished_at) - parse(r.started_at)).sort((a, b) => a - b);
  return took[took.length >> 1] ?? NaN;
}

export async function load() {
  const [summary, now, days, past, next, failed] = await Promise.all([
    permitted(get("summary"), null),
    running(),
    permitted(get("stats"), {}),
    permitted(get("executions" + query({ limit: marksMax })), null),
    permitted(get("upcoming" + query({ limit: marksMax })), null),
    permitted(get("executions" + query({ outcome: "bad", limit: listRows, output_size_limit: 4000, start: lastDay() })), null),
  ]);
  return { summary, now, days: days.stats, past, next, failed };
}

export function show({ summary, now, days, past, next, failed }, _, [members, leader]) {
  return [
    heading("Overview"),
    summary?.jobs.total === 0 && firstJob(),
    summary && tiles(summary),
    summary && !may.seeAll() && el("p", { class: "quiet" }, "These numbers count all jobs. The lists have those that this token may see."),
    el("div", { class: "board" },
      past && next && timeline(past, next, marksMax),
      days && panel("Runs a day", { class: "side" }, chart(days)),
      panel("Running now", { id: "running", tabindex: "-1" }, now ? runningList(now) : unseen()),
      panel("Last failures", { id: "failures", tabindex: "-1" }, failed ? failureList(failed) : unseen()),
      summary && panel("Why it did not run", { id: "unrun", tabindex: "-1" }, unrunList(summary.unrun)),
      members.length > 0 && panel("Nodes", null, nodeList(members, leader))),
  ];
}

// unseen stands where the token does not let us look: nothing is no answer then.
const unseen = () => el("p", { class: "quiet" }, "This token may not see that.");

function tiles({ jobs: c, running: busy, today, start_delay: delay }) {
  return el("div", { class: "tiles" },
    tile(c.total, `jobs, ${c.disabled.toLocaleString()} disabled`, { href: c.disabled ? "#/jobs?disabled=true" : "#/jobs" }),
    tile(busy, "running now", { "data-action": "show", "data-target": "running" }, busy && "busy"),
    tile(c.failing, "jobs failing", { href: "#/jobs?status=failing" }, c.failing && "bad"),
    tile(c.untriggered, "never ran", { href: "#/jobs?status=untriggered" }),
    tile(today.missed, "ticks missed today", { "data-action": "show", "data-target": "unrun" }, today.missed && "bad"),
    tile(share(today), `good of ${(today.success_count + today.failed_count).toLocaleString()} today`, { "data-action": "show", "data-target": "failures" }),
    el("div", { class: "tile", title: delay.ticks > 0 && `of the last ${delay.ticks} runs; half of them ${duration(delay.median_ms)}, at most ${duration(delay.max_ms)}` },
      el("b", null, delay.ticks > 0 ? duration(delay.p99_ms) : "–"), " ", el("span", null, "start delay, p99")));
}

// share is rounded down: not all is good before all is.
function share({ success_count: good, failed_count: bad }) {
  return good + bad === 0 ? "–" : `${(Math.floor(good / (good + bad) * 10_000) / 100).toLocaleString()} %`;
}

// tile is a number that leads to what it counts.
function tile(n, words, leads, kind) {
  return el(leads.href ? "a" : "button", { class: "tile " + (kind || ""), ...leads }, el("b", null, n.toLocaleString()), " ", el("span", null, words));
}

// chart draws a bar a day: what went well, and on top of it what failed.
function chart(days) {
  const most = Math.max(1, ...days.map((d) => d.success_count + d.failed_count));
  const good = days.reduce((sum, d) => sum + d.success_count, 0);
  const bad = days.reduce((sum, d) => sum + d.failed_count, 0);
  const words = `${good.toLocaleString()} good, ${bad.toLocaleString()} failed`;
  return el("figure", null,
    svg("svg", { viewBox: `0 0 ${days.length * 10} 100`, preserveAspectRatio: "none", class: "chart", role: "img", "aria-label": `Runs of the last ${days.length} days: ${words}` },
      days.map((d, i) => bar(d, i * 10, 100 / most))),
    el("figcaption", null, el("span", null, "30 days ago"), el("span", null, words), el("span", null, "today")));
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

function runningList({ busy, total }) {
  if (busy.length === 0) return el("p", { class: "quiet" }, "Nothing runs.");
  return [
    el("ul", { class: "plain" }, busy.map((e) => el("li", { "data-key": e.id },
      el("a", { href: `#/${executionPath(e.job_name, e.id)}` }, e.job_name), " on ", e.node_name, e.attempt > 1 && `, attempt ${e.attempt}`,
      e.usual > 0 && progress((now() - parse(e.started_at)) / e.usual),
      el("div", { class: "quiet" }, since(parse(e.started_at)), e.usual > 0 && `, usually ${duration(e.usual)}`)))),
    total > busy.length && el("p", { class: "quiet" }, `and ${(total - busy.length).toLocaleString()} more`),
  ];
}

function progress(part) {
  return svg("svg", { class: "progress", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: 100, height: 4, class: "back" }), svg("rect", { width: Math.min(part, 1) * 100, height: 4, class: part > 2 ? "odd" : "busy" }));
}

// failureList shows why each failed and the last lines that it printed.
function failureList(failed) {
  if (failed.length === 0) return el("p", { class: "quiet" }, "None in the last 24 hours.");
  return el("ul", { class: "plain" }, failed.map((e) => {
    const line = ending(e);
    return el("li", { "data-key": e.id },
      el("a", { href: `#/${executionPath(e.job_name, e.id)}` }, e.job_name), " ", badge(e.outcome), " ",
      el("span", { class: "quiet" }, ago(parse(e.finished_at)), " · ", e.node_name),
      line && el("code", { class: "line" }, visible(line)));
  }));
}

// unrunList says of each job and reason when it was so last, and how often.
function unrunList(unrun) {
  if (unrun.length === 0) return el("p", { class: "quiet" }, "Everything that fell due ran.");
  const groups = Object.values(Object.groupBy(unrun, (t) => `${t.job_name} ${t.outcome} ${t.reason.replace(/\d+\S*$/, "")}`));
  return el("ul", { class: "plain" }, groups.slice(0, listRows).map(([t, ...earlier]) => {
    const times = t.count + earlier.reduce((sum, e) => sum + e.count, 0);
    return el("li", { "data-key": `${t.job_name} ${t.outcome} ${t.reason}` },
      el("a", { href: "#/" + jobPath(t.job_name) }, t.job_name), " ", badge(t.outcome), " ",
      el("span", { class: "quiet" }, at(parse(t.due)), times > 1 && `, ${times.toLocaleString()} times of late`),
      el("div", null, t.reason));
  }));
}

export const nodeKinds = { alive: "good", leaving: "odd", left: "none" };

function nodeList(members, leader) {
  return el("ul", { class: "plain" }, members.map((m) => el("li", { "data-key": m.Name },
    el("span", { class: "dot " + (nodeKinds[m.statusText] ?? "bad") }), el("b", null, m.Name), " ",
    m.Name === leader?.Name && el("span", { class: "badge" }, "leader"), m.Tags?.server !== "true" && el("span", { class: "badge" }, "runs jobs only"),
    el("div", { class: "quiet" }, `${m.statusText}, version ${m.Tags?.version ?? "unknown"}, ${m.Addr}:${m.Port}`))));
}

export const actions = {};
