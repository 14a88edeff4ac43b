// A job: when it runs next, how its runs went, and what became of every time
// that it fell due.

import { executionPath, get, jobPath, list, permitted, query, read } from "./api.js";
import { badge, el, heading, kind, panel, strip, svg } from "./dom.js";
import { ended } from "./failures.js";
import { may } from "./rights.js";
import { absolute, ago, at, duration, exact, inZone, now, parse, since, until, zone } from "./time.js";
import { buttons, lastRun, lastRuns, noPage, pageOf, schedule, turner } from "./jobs.js";

const executionRows = 25;
const tickRows = 25;
const upcoming = 5;

export const title = ({ names }) => names[0];

export async function load({ names: [name], search }) {
  const path = jobPath(name);
  const start = (pageOf(search) - 1) * executionRows;
  const [{ doc: job, warning }, executions, ticks, targets, runs] = await Promise.all([
    read(path),
    permitted(list(`${path}/executions` + query({ _start: start, _end: start + executionRows, output_size_limit: 1000 })), null),
    permitted(get(`${path}/ticks` + query({ _start: 0, _end: tickRows })), null),
    permitted(get(`${path}/targets`), null),
    lastRuns([name]),
  ]);
  return { job, warning, executions, ticks, targets, runs: runs.get(name) ?? [], coming: await comingTicks(job) };
}

export const concerns = (event, { names: [name] }) => event.job === name;

// comingTicks are the next run, which the server knows, and those after it,
// with what the schedule says in words and the zone that it is in.
async function comingTicks(job) {
  if (job.parent_job) return { next: [] };
  const asked = { schedule: job.schedule, timezone: job.timezone, name: job.name, count: upcoming - 1, from: job.next };
  const { next, words, timezone } = await permitted(get("schedule" + query(asked)), { next: [] });
  const first = job.disabled ? null : parse(job.next), end = parse(job.expires_at);
  return { words, timezone, next: first ? [first, ...next.map((t) => new Date(t))].filter((t) => !end || t <= end) : [] };
}

export function show({ job, warning, executions, ticks, targets, runs, coming }, { search }) {
  return [
    el("p", { class: "crumbs" }, el("a", { href: "#/jobs" }, "Jobs"), " / "),
    el("div", { class: "title" }, heading(job.displayname || job.name),
      el("div", { class: "actions" }, may.edit(job.name) && el("a", { class: "button", href: `#/${jobPath(job.name)}/edit` }, "Edit"), buttons(job))),
    el("div", { class: "columns" }, panel("Job", null, warning && el("p", { class: "warning" }, warning), facts(job, runs, targets, coming)), panel("Next runs", null, nextList(job, coming))),
    executions && panel("Runs", null, runTable(job, executions, search)),
    ticks && panel("Every time it fell due, last 24 hours", null, tickList(job, ticks)),
    el("details", { class: "panel" }, el("summary", null, "As JSON"), el("pre", null, JSON.stringify(job, null, 2))),
  ];
}

function facts(j, runs, targets, coming) {
  const pairs = (o) => Object.entries(o ?? {}).map(([k, v]) => el("div", null, el("code", null, `${k}=${v}`)));
  const links = (names) => names.map((n) => el("div", null, el("a", { href: "#/" + jobPath(n) }, n)));
  const rows = [
    ["Name", el("code", null, j.name)],
    ["Last run", [lastRun(j, runs), runs.length > 0 && el("div", null, strip(runs))]],
    ["Schedule", [coming.words && el("div", null, coming.words), schedule(j), j.disabled && [" ", badge("disabled")]]],
    ["Runs", `${j.success_count.toLocaleString()} succeeded, ${j.error_count.toLocaleString()} failed`],
    ["Starts", parse(j.starts_at) && at(parse(j.starts_at))],
    ["Expires", parse(j.expires_at) && at(parse(j.expires_at))],
    ["Executor", [el("div", null, j.executor), pairs(j.executor_config)]],
    ["Runs on", j.tags && Object.keys(j.tags).length ? pairs(j.tags) : "every node"],
    ["Nodes now", targets && (targets.length ? targets.join(", ") : el("span", { class: "warning" }, "none: it cannot run"))],
    ["Runs after", j.parent_job ? links([j.parent_job]) : ""],
    ["Triggers", j.dependent_jobs?.length ? links(j.dependent_jobs) : ""],
    ["Retries", j.retries || ""],
    ["Parameters", pairs(j.params)],
    ["Skipped on days of", j.skip_on?.join(", ")],
    ["Disabled by", j.disable_after ? `${j.disable_after} failed runs in a row` : ""],
    ["Concurrency", { forbid: "only one run", queue: "only one run; the newest waits", replace: "only the newest run" }[j.concurrency]],
    ["Mutex", j.mutex],
    ["Overdue", [j.max_runtime && `a run after ${j.max_runtime}`, j.max_silence && `without success for ${j.max_silence}`].filter(Boolean).join("; ")],
    ["Notices", (j.notify ?? []).map((n) => el("div", null, `${n.mail ?? "a webhook"}: ${n.on.join(", ")}`))],
    ["Notices lost", j.notices_lost ? el("span", { class: "warning" }, `${j.notices_lost.toLocaleString()} that no receiver took`) : ""],
    ["Owner", [j.owner, " ", j.owner_email].join("").trim()],
    ["Metadata", j.metadata && pairs(j.metadata)],
  ];
  return el("dl", null, rows.filter(([, v]) => v && v.length !== 0).map(([k, v]) => [el("dt", null, k), el("dd", null, v)]));
}

// nextList shows the next runs by the clocks of the job's zone, and marks where
// these change between two runs: the distance to UTC differs.
function nextList(j, { next, timezone }) {
  if (j.disabled) return el("p", { class: "quiet" }, "Its schedule is off.");
  if (j.parent_job) return el("p", { class: "quiet" }, `After each ${{ failure: "failure", any: "end" }[j.parent_on] ?? "success"} of ${j.parent_job}.`);
  if (next.length === 0) return el("p", { class: "quiet" }, "None by its schedule.");
  const own = timezone || j.timezone || zone;
  const named = inZone(next[0], own) ? own : zone; // this browser may not know it
  const ticks = next.map((t) => ({ t, ...inZone(t, named) }));
  return [
    el("ol", { class: "plain" }, ticks.map(({ t, words, offset }, i) => el("li", { "data-key": t.toISOString() },
      until(t), " · ", el("time", { datetime: t.toISOString(), title: exact(t) }, words), " ", el("span", { class: "quiet" }, offset),
      i > 0 && offset !== ticks[i - 1].offset && el("small", { class: "warning" }, `The clocks change before this, from ${ticks[i - 1].offset}.`)))),
    el("p", { class: "quiet" }, `Times in ${named}` + (ticks[0].offset === inZone(next[0], zone).offset ? "." : `; yours is ${zone}.`)),
  ];
}

// lasted is how long an execution took, or takes so far, in milliseconds.
export const lasted = (e) => (parse(e.finished_at) ?? now()) - parse(e.started_at);

function runTable(job, { rows, total }, search) {
  if (total === 0) return el("p", { class: "quiet" }, "It has not run, or the record of its runs was deleted.");
  if (rows.length === 0) return noPage(search, "#/" + jobPath(job.name));
  const longest = Math.max(1, ...rows.map(lasted));
  const page = pageOf(search), pages = Math.ceil(total / executionRows);
  return [
    el("table", { class: "list" },
      el("thead", null, el("tr", null, ["Started", "Outcome", "Took", "On", "Why", "Output"].map((h) => el("th", null, h)))),
      el("tbody", null, rows.map((e) => runRow(job, e, longest)))),
    pages > 1 && turner(page, pages, `${total.toLocaleString()} runs, page ${page} of ${pages}`, (to) => `#/${jobPath(job.name)}` + query({ page: to === 1 ? "" : to })),
  ];
}

export const causes = { tick: "schedule", child: "after its parent", retry: "retry", hand: "by hand" };

function runRow(job, e, longest) {
  const state = e.outcome || "running";
  return el("tr", { "data-key": e.id },
    el("td", { "data-label": "Started" }, el("a", { href: `#/${executionPath(job.name, e.id)}` }, ago(parse(e.started_at)))),
    el("td", { "data-label": "Outcome" }, badge(state)),
    el("td", { "data-label": "Took" }, e.outcome ? duration(lasted(e)) : since(parse(e.started_at)), durationBar(lasted(e) / longest, kind(state))),
    el("td", { "data-label": "On" }, e.node_name),
    el("td", { "data-label": "Why" }, causes[e.cause] ?? e.cause, e.attempt > 1 && `, attempt ${e.attempt}`),
    el("td", { "data-label": "Output", class: "excerpt" }, el("code", null, ended(e, 2).replaceAll("\n", " · "))));
}

function durationBar(part, colour) {
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
  return el("tr", { "data-key": tick.due + tick.outcome },
    el("td", { "data-label": "Due" }, at(parse(tick.due)), range),
    el("td", { "data-label": "Became" }, badge(tick.outcome)),
    el("td", { "data-label": "Why" }, tick.reason, (tick.executions ?? []).map((id) => el("a", { href: `#/${executionPath(job.name, id)}` }, "its run "))));
}

export const actions = {};
