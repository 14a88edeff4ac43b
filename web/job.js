// A job: when it runs next, how its runs went, and what became of every time
// that it fell due.

import { executionPath, get, jobPath, list, query } from "./api.js";
import { badge, el, heading, kind, panel, svg, visible } from "./dom.js";
import { absolute, ago, at, duration, parse, zone } from "./time.js";
import { buttons, lastRun, schedule } from "./jobs.js";

const executionRows = 25;
const tickRows = 25;
const upcoming = 5;

export const title = ({ names }) => names[0];

export async function load({ names: [name] }) {
  const path = jobPath(name);
  const [job, executions, ticks] = await Promise.all([
    get(path),
    list(`${path}/executions` + query({ _start: 0, _end: executionRows, output_size_limit: 120 })),
    get(`${path}/ticks` + query({ _start: 0, _end: tickRows })),
  ]);
  return { job, executions, ticks, next: await nextTicks(job) };
}

// nextTicks are the next run, which the server knows, and those after it.
async function nextTicks(job) {
  const first = parse(job.next);
  if (job.disabled || job.parent_job || !first) return [];
  const { next } = await get("schedule" + query({ schedule: job.schedule, timezone: job.timezone, name: job.name, count: upcoming - 1, from: job.next }));
  const end = parse(job.expires_at);
  return [first, ...next.map((t) => new Date(t))].filter((t) => !end || t <= end);
}

export function show({ job, executions, ticks, next }) {
  return [
    el("p", { class: "crumbs" }, el("a", { href: "#/jobs" }, "Jobs"), " / "),
    el("div", { class: "title" }, heading(job.displayname || job.name), el("div", { class: "actions" }, el("a", { class: "button", href: `#/${jobPath(job.name)}/edit` }, "Edit"), buttons(job))),
    el("div", { class: "columns" }, panel("Job", null, facts(job)), panel("Next runs", null, nextList(job, next))),
    panel("Runs", null, runs(job, executions)),
    panel("Every time it fell due, last 24 hours", null, tickList(job, ticks)),
    el("details", { class: "panel" }, el("summary", null, "As JSON"), el("pre", null, JSON.stringify(job, null, 2))),
  ];
}

function facts(j) {
  const pairs = (o) => Object.entries(o ?? {}).map(([k, v]) => el("div", null, el("code", null, `${k}=${v}`)));
  const links = (names) => names.map((n) => el("div", null, el("a", { href: "#/" + jobPath(n) }, n)));
  const rows = [
    ["Name", el("code", null, j.name)],
    ["State", [badge(j.status || "untriggered"), " ", lastRun(j)]],
    ["Schedule", [schedule(j), j.disabled && [" ", badge("disabled")]]],
    ["Runs", `${j.success_count.toLocaleString()} good, ${j.error_count.toLocaleString()} failed`],
    ["Starts", parse(j.starts_at) && at(parse(j.starts_at))],
    ["Expires", parse(j.expires_at) && at(parse(j.expires_at))],
    ["Does", [el("div", null, j.executor), pairs(j.executor_config)]],
    ["Nodes", j.tags && Object.keys(j.tags).length ? pairs(j.tags) : "every node"],
    ["Then", j.dependent_jobs?.length ? links(j.dependent_jobs) : ""],
    ["Retries", j.retries || ""],
    ["At once", j.concurrency === "forbid" ? "only one run" : ""],
    ["Owner", [j.owner, " ", j.owner_email].join("").trim()],
    ["Metadata", j.metadata && pairs(j.metadata)],
  ];
  return el("dl", null, rows.filter(([, v]) => v && v.length !== 0).map(([k, v]) => [el("dt", null, k), el("dd", null, v)]));
}

// nextList marks where the clocks change between two runs: the distance to UTC differs.
function nextList(j, next) {
  if (j.disabled) return el("p", { class: "quiet" }, "Its schedule is off.");
  if (j.parent_job) return el("p", { class: "quiet" }, `After each success of ${j.parent_job}.`);
  if (next.length === 0) return el("p", { class: "quiet" }, "None by its schedule.");
  const changes = (t, i) => i > 0 && t.getTimezoneOffset() !== next[i - 1].getTimezoneOffset();
  return [
    el("ol", { class: "plain" }, next.map((t, i) => el("li", null, ago(t), inZone(t, j.timezone), changes(t, i) && el("small", null, "the clocks change before this")))),
    el("p", { class: "quiet" }, `Times in ${zone}.`),
  ];
}

// inZone adds the time of a job that has a zone of its own.
function inZone(t, timezone) {
  if (!timezone || timezone === zone) return "";
  try {
    return el("small", null, `${t.toLocaleString(undefined, { timeZone: timezone, dateStyle: "medium", timeStyle: "medium" })} ${timezone}`);
  } catch {
    return ""; // a zone that this browser does not know
  }
}

// lasted is how long an execution took, or takes so far, in milliseconds.
export const lasted = (e) => (parse(e.finished_at) ?? new Date()) - parse(e.started_at);

function runs(job, { rows, total }) {
  if (total === 0) return el("p", { class: "quiet" }, "It has not run, or the record of its runs was deleted.");
  const longest = Math.max(1, ...rows.map(lasted));
  return [
    el("table", { class: "list" },
      el("thead", null, el("tr", null, ["Started", "Outcome", "Took", "On", "Why", "Output"].map((h) => el("th", null, h)))),
      el("tbody", null, rows.map((e) => runRow(job, e, longest)))),
    total > rows.length && el("p", { class: "quiet" }, `The last ${rows.length} of ${total}.`),
  ];
}

const causes = { tick: "schedule", child: "after its parent", retry: "retry", hand: "by hand" };

function runRow(job, e, longest) {
  const state = e.outcome || "running";
  const first = (e.output ?? "").split("\n", 1)[0];
  return el("tr", { "data-key": e.id },
    el("td", { "data-label": "Started" }, el("a", { href: `#/${executionPath(job.name, e.id)}` }, ago(parse(e.started_at)))),
    el("td", { "data-label": "Outcome" }, badge(state)),
    el("td", { "data-label": "Took" }, duration(lasted(e)), durationBar(lasted(e) / longest, kind(state))),
    el("td", { "data-label": "On" }, e.node_name),
    el("td", { "data-label": "Why" }, causes[e.cause] ?? e.cause, e.attempt > 1 && `, attempt ${e.attempt}`),
    el("td", { "data-label": "Output", class: "excerpt" }, el("code", null, visible(first))));
}

export function durationBar(part, colour) {
  return svg("svg", { class: "bar", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: 100, height: 4, class: "back" }), svg("rect", { width: Math.max(1, part * 100), height: 4, class: colour }));
}

function tickList(job, t) {
  const sum = `${t.due.toLocaleString()} fell due: ${t.ran.toLocaleString()} ran, ${t.late.toLocaleString()} ran late, ${t.skipped.toLocaleString()} skipped, ${t.missed.toLocaleString()} missed.`;
  if (t.due === 0) return el("p", { class: "quiet" }, "It did not fall due.");
  return [
    el("p", null, sum),
    el("table", { class: "list" },
      el("thead", null, el("tr", null, ["Due", "Became", "Why"].map((h) => el("th", null, h)))),
      el("tbody", null, t.ticks.map((tick) => tickRow(job, tick)))),
    t.due > t.ticks.length && el("p", { class: "quiet" }, "The newest are shown."),
  ];
}

function tickRow(job, tick) {
  const range = tick.count > 1 && ` to ${absolute(parse(tick.until))}, ${tick.count.toLocaleString()} times`;
  return el("tr", null,
    el("td", { "data-label": "Due" }, at(parse(tick.due)), range),
    el("td", { "data-label": "Became" }, badge(tick.outcome)),
    el("td", { "data-label": "Why" }, tick.reason, (tick.executions ?? []).map((id) => el("a", { href: `#/${executionPath(job.name, id)}` }, "its run "))));
}

export const actions = {};
