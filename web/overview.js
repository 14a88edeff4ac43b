// The overview: is everything running, what failed, what runs next, and why
// something did not run.

import { executionPath, get, jobPath, list, permitted, query } from "./api.js";
import { badge, el, heading, panel, plural, svg } from "./dom.js";
import { failureList, failures } from "./failures.js";
import { firstJob, lastRuns } from "./jobs.js";
import { may } from "./rights.js";
import { timeline, timelinePath } from "./timeline.js";
import { at, duration, now as clock, parse, since } from "./time.js";

const listRows = 4, failuresShown = 3;
const timelinePace = 30_000; // milliseconds; a mark of it stands for a minute
const outputShown = 400; // bytes of each failure

export const title = () => "Overview";

export const pace = 5_000;

// running are the runs that go on, the oldest first, and how long such runs took before.
async function running() {
  const { rows, total } = await permitted(list("busy" + query({ limit: listRows, output_size_limit: 0 })), {});
  if (!rows) return null;
  const runs = await lastRuns([...new Set(rows.map((e) => e.job_name))]);
  return { busy: rows.map((e) => ({ ...e, usual: usual(runs.get(e.job_name) ?? []) })), total };
}

// usual is the middle of what runs took that succeeded, in milliseconds; NaN if there are none.
function usual(runs) {
  const took = runs.filter((r) => r.outcome === "success").map((r) => parse(r.finished_at) - parse(r.started_at)).sort((a, b) => a - b);
  return took[took.length >> 1] ?? NaN;
}

let slow = { made: -Infinity }; // what need not be read as often as the rest

// slowly reads the timeline and the days, if they have grown old.
async function slowly() {
  if (performance.now() - slow.made > timelinePace || slow.width !== innerWidth) {
    const width = innerWidth, made = performance.now();
    const [line, days] = await Promise.all([permitted(get(timelinePath()), null), permitted(get("stats"), {})]);
    slow = { width, made, line, days: days.stats };
  }
  return slow;
}

export const leave = () => { slow = { made: -Infinity }; };

export async function load() {
  const [summary, now, { line, days }, failed, waiting] = await Promise.all([
    permitted(get("summary"), null), running(), slowly(), failures(24, failuresShown, outputShown), permitted(list("busy" + query({ waiting: "1", limit: listRows })), null),
  ]);
  return { summary, now, days, line, failed, waiting };
}

export function show({ summary, now, days, line, failed, waiting }, _, [members, leader]) {
  return [
    heading("Overview"),
    summary?.jobs.total === 0 && firstJob(),
    summary && tiles(summary),
    summary && !may.seeAll() && el("p", { class: "quiet" }, "These numbers count all jobs. The lists have those that this token may see."),
    el("div", { class: "board" },
      line && timeline(line),
      days && panel("Runs a day", { class: "side" }, chart(days)),
      panel("Running now", { id: "running", tabindex: "-1" }, now ? runningList(now) : unseen(), waiting?.total > 0 && waitingList(waiting)),
      panel("Failures by job, last 24 hours", { id: "failures", tabindex: "-1" }, failed === null ? unseen() : failed.length ? failureList(failed, 24, true) : el("p", { class: "quiet" }, "Nothing failed."),
        failed?.length > 0 && el("p", null, el("a", { href: "#/failures" }, "All failures"))),
      summary && panel("Why it did not run", { id: "unrun", tabindex: "-1" }, unrunList(summary.unrun)),
      members.length > 0 && panel("Nodes", null, nodeList(members, leader), summary && notices(summary.notices),
        may.hold() && el("button", { "data-action": "hold" }, "Hold all jobs"))),
  ];
}

// waitingList has what is to start as soon as something is free.
const waitingList = ({ rows, total }) => [
  el("h3", null, "Waiting"),
  el("ul", { class: "plain", id: "waits" }, rows.map((w) => el("li", { "data-key": w.job_name + w.scheduled_at + w.waits_for },
    el("a", { href: "#/" + jobPath(w.job_name) }, w.job_name), " for ", w.waits_for, " ", el("span", { class: "quiet" }, since(parse(w.scheduled_at)))))),
  total > rows.length && el("p", { class: "quiet" }, `and ${(total - rows.length).toLocaleString()} more`),
];

// notices says what was told to receivers, and what was not.
const notices = ({ waiting, delivered, lost }) => waiting + delivered + lost > 0 && el("p", { class: lost ? "warning" : "quiet", id: "notices" },
  `${plural(delivered, "notice")} delivered, ${waiting.toLocaleString()} waiting, ${lost.toLocaleString()} lost since this server started.`);

// unseen stands where the token does not let us look: nothing is no answer then.
const unseen = () => el("p", { class: "quiet" }, "This token may not see that.");

function tiles({ jobs: c, running: busy, today, start_delay: delay }) {
  return el("div", { class: "tiles" },
    tile(c.total, `${c.total === 1 ? "job" : "jobs"}, ${c.disabled.toLocaleString()} disabled`, { href: c.disabled ? "#/jobs?disabled=true" : "#/jobs" }),
    tile(busy, "running now", { "data-action": "show", "data-target": "running" }, busy && "busy"),
    tile(c.failing, c.failing === 1 ? "job failing" : "jobs failing", { href: "#/jobs?status=failing" }, c.failing && "bad"),
    tile(c.untriggered, "never ran", { href: "#/jobs?status=untriggered" }),
    tile(today.missed, today.missed === 1 ? "tick missed today" : "ticks missed today", { "data-action": "show", "data-target": "unrun" }, today.missed && "bad"),
    tile(share(today), `succeeded of ${(today.success_count + today.failed_count).toLocaleString()} today`, { href: "#/failures" }),
    el("div", { class: "tile", title: delay.ticks > 0 && `of the last ${plural(delay.ticks, "run")}; half of them ${duration(delay.median_ms)}, at most ${duration(delay.max_ms)}` },
      el("b", null, delay.ticks > 0 ? duration(delay.p99_ms) : "–"), " ", el("span", null, "start delay, p99")));
}

// share is rounded down: 100 % means all.
function share({ success_count: good, failed_count: bad }) {
  return good + bad === 0 ? "–" : `${(Math.floor(good / (good + bad) * 10_000) / 100).toLocaleString()} %`;
}

// tile is a number that leads to what it counts.
function tile(n, words, leads, kind) {
  return el(leads.href ? "a" : "button", { class: "tile " + (kind || ""), ...leads }, el("b", null, n.toLocaleString()), " ", el("span", null, words));
}

// chart draws a bar a day: what succeeded, and on top of it what failed.
function chart(days) {
  const most = Math.max(1, ...days.map((d) => d.success_count + d.failed_count));
  const good = days.reduce((sum, d) => sum + d.success_count, 0);
  const bad = days.reduce((sum, d) => sum + d.failed_count, 0);
  const words = `${good.toLocaleString()} succeeded, ${bad.toLocaleString()} failed`;
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
    svg("title", null, `${day.date.slice(0, 10)}: ${day.success_count} succeeded, ${day.failed_count} failed`),
    svg("rect", { x, y: 0, width: 10, height: 100, class: "back" }),
    svg("rect", { x: x + 1, y: 100 - good, width: 8, height: good, class: "good" }),
    svg("rect", { x: x + 1, y: 100 - good - bad, width: 8, height: bad, class: "bad" }));
}

function runningList({ busy, total }) {
  if (busy.length === 0) return el("p", { class: "quiet" }, "Nothing runs.");
  return [
    el("ul", { class: "plain" }, busy.map((e) => el("li", { "data-key": e.id },
      el("a", { href: `#/${executionPath(e.job_name, e.id)}` }, e.job_name), " on ", e.node_name, e.attempt > 1 && `, attempt ${e.attempt}`,
      e.usual > 0 && progress((clock() - parse(e.started_at)) / e.usual),
      el("div", { class: "quiet" }, since(parse(e.started_at)), e.usual > 0 && `, usually ${duration(e.usual)}`)))),
    total > busy.length && el("p", { class: "quiet" }, `and ${(total - busy.length).toLocaleString()} more`),
  ];
}

function progress(part) {
  return svg("svg", { class: "progress", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: 100, height: 4, class: "back" }), svg("rect", { width: Math.min(part, 1) * 100, height: 4, class: part > 2 ? "odd" : "busy" }));
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
    m.drained && el("span", { class: "badge odd" }, "drained"), may.drain(m.Name) && m.statusText === "alive" && el("button", { class: "small", "data-action": m.drained ? "undrain" : "drain", "data-node": m.Name }, m.drained ? "Undrain" : "Drain"),
    el("div", { class: "quiet" }, `${m.statusText}, version ${m.Tags?.version ?? "unknown"}, ${m.Addr}:${m.Port}`))));
}

export const actions = {};
