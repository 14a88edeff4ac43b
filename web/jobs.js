// The list of jobs. What is searched, filtered, sorted and which page is shown
// stands in the address, so that it can be kept and sent; the server does it.

import { executionPath, get, jobPath, list, permitted, query } from "./api.js";
import { badge, choices, el, field, heading, menu, strip } from "./dom.js";
import { may } from "./rights.js";
import * as selection from "./selection.js";
import { ago, parse, since, until } from "./time.js";

const pageRows = 50;
const typingPause = 300; // milliseconds of quiet before a search is sent
const columns = [["name", "Job"], ["status", "Last run"], ["next", "Next run"], ["schedule", "Schedule"]];

export const title = () => "Jobs";

// metadataFilter reads "k=v k2=v2" as the server wants it.
function metadataFilter(text) {
  const pairs = text.split(/\s+/).filter((p) => p.includes("="));
  return Object.fromEntries(pairs.map((p) => [`metadata[${p.slice(0, p.indexOf("="))}]`, p.slice(p.indexOf("=") + 1)]));
}

export const pageOf = (search) => Math.max(1, Number.parseInt(search.get("page"), 10) || 1);

export async function load({ search }) {
  const start = (pageOf(search) - 1) * pageRows;
  const asked = (name) => search.get(name) ?? "";
  const { rows, total } = await list("jobs" + query({
    q: asked("q"), status: asked("status"), disabled: asked("disabled"), executor: asked("executor"), owner: asked("owner"), ...metadataFilter(asked("metadata")),
    _sort: asked("sort"), _order: asked("order"), _start: start, _end: start + pageRows,
  }));
  shown = new Set(rows.map((j) => j.name));
  return { rows, total, runs: await lastRuns(rows.map((j) => j.name)) };
}

let shown = new Set(); // the names in the list

// lastRuns returns the last runs of jobs, the newest first, in a map by their
// names: a job may be called constructor.
export async function lastRuns(names) {
  return new Map(names.length ? Object.entries(await permitted(get("outcomes?" + new URLSearchParams(names.map((n) => ["job", n]))), {})) : []);
}

// concerns: runs of jobs that are not shown matter where they decide which are.
export function concerns(event, { search }) {
  return event.type === "job" || shown.has(event.job) || search.get("status") || ["status", "next"].includes(search.get("sort"));
}

// address returns the address of the list with some things changed.
function address(search, changes) {
  const all = { ...Object.fromEntries(search), ...changes };
  return "#/jobs" + query(all);
}

export function show({ rows, total, runs }, { search }) {
  return [
    heading("Jobs"),
    filters(search),
    selection.bar(rows.map((j) => j.name), verbs(rows), "job", "jobs"),
    rows.length > 0 ? table(rows, runs, search) : total > 0 ? noPage(search, address(search, { page: "" })) : search.size ? el("p", { class: "quiet", role: "status" }, "No job is like that.") : firstJob(),
    pager(total, search),
  ];
}

function filters(search) {
  const value = (name) => search.get(name) ?? "";
  return el("form", { class: "filters", role: "search" },
    field("Search", el("input", { type: "search", name: "q", value: value("q"), placeholder: "part of a name" })),
    field("State", choices({ name: "status" }, value("status"), [["", "any"], ["success", "succeeded"], ["failing", "failing"], ["failed", "failed"], ["partially_failed", "partially failed"], ["untriggered", "never ran"]])),
    field("Schedule", choices({ name: "disabled" }, value("disabled"), [["", "on or off"], ["false", "on"], ["true", "off"]])),
    field("Executor", choices({ name: "executor" }, value("executor"), [["", "any"], ["shell", "shell"], ["http", "http"]])),
    field("Owner", el("input", { name: "owner", value: value("owner"), autocomplete: "off" })),
    field("Metadata", el("input", { name: "metadata", value: value("metadata"), placeholder: "team=data" })),
    search.size > 0 && el("a", { class: "button", href: "#/jobs" }, "Clear"));
}

// firstJob is for who has none yet.
export const firstJob = () => el("section", { class: "panel first" },
  el("h2", null, "There are no jobs yet"),
  el("p", null, "A job is a command or a request with a schedule. ", may.create() && "An example is ready: it says hello every ten seconds."),
  may.create() && el("div", { class: "actions" }, el("a", { class: "button primary", href: "#/new?example=1" }, "Look at the example"), el("a", { class: "button", href: "#/new" }, "Start from nothing")));

// typed puts what is typed into the address, when the typing pauses.
let typing = 0;
export function typed({ target }) {
  clearTimeout(typing);
  const { form } = target;
  if (selection.pick(target) || !form?.matches(".filters")) return;
  typing = setTimeout(() => {
    const search = new URLSearchParams(location.hash.split("?")[1]);
    history.replaceState(history.state, "", address(search, { ...Object.fromEntries(new FormData(form)), page: "" }));
    dispatchEvent(new HashChangeEvent("hashchange"));
  }, typingPause);
}

export function leave() {
  clearTimeout(typing);
  selection.forget();
}

function table(rows, runs, search) {
  return el("table", { class: "list jobs" },
    el("thead", null, el("tr", null, verbs(rows).length > 0 && selection.headBox(), columns.map(([key, words]) => headCell(key, words, search)), el("th", { class: "runs" }, "Last runs"), el("th", { class: "buttons" }, el("span", { class: "unseen" }, "Actions")))),
    el("tbody", null, rows.map((j) => row(j, runs.get(j.name) ?? [], verbs(rows).length > 0))));
}

// verbs are what can be done to jobs that are selected.
const verbs = (rows) => [["run", "Run"], ["enable", "Enable"], ["disable", "Disable"]].filter(([verb]) => rows.some((j) => may[verb === "run" ? "run" : "toggle"](j.name)));

function headCell(key, words, search) {
  const sorted = (search.get("sort") ?? "name") === key;
  const descending = sorted && search.get("order") === "DESC";
  const order = sorted && !descending ? "DESC" : "";
  return el("th", { class: key, "aria-sort": sorted ? (descending ? "descending" : "ascending") : false },
    el("a", { href: address(search, { sort: key, order, page: "" }) }, words, sorted && el("span", { "aria-hidden": "true" }, descending ? " ↓" : " ↑")));
}

// row has a key, so that a button never becomes that of another job.
function row(j, runs, picks) {
  return el("tr", { "data-key": j.name },
    picks && selection.box(j.name, j.name),
    el("th", { scope: "row", "data-label": "Job" }, el("a", { href: "#/" + jobPath(j.name) }, j.displayname || j.name), j.displayname && el("small", null, j.name)),
    el("td", { "data-label": "Last run" }, lastRun(j, runs)),
    el("td", { "data-label": "Next run" }, nextRun(j)),
    el("td", { "data-label": "Schedule" }, schedule(j)),
    el("td", { "data-label": "Last runs" }, runs.length > 0 && strip(runs)),
    el("td", null, el("div", { class: "actions" }, buttons(j))));
}

// lastRun is the run that goes on, or else how the last one ended.
export function lastRun(j, runs) {
  const running = runs.find((r) => !r.outcome);
  if (running) return el("a", { href: `#/${executionPath(j.name, running.id)}` }, badge("running"), " ", since(parse(running.started_at)));
  const last = Math.max(parse(j.last_success) ?? 0, parse(j.last_error) ?? 0);
  return [badge(j.status || "untriggered"), " ", last > 0 && ago(new Date(last))];
}

export function nextRun(j) {
  if (j.disabled) return badge("disabled");
  return parse(j.next) ? until(parse(j.next)) : el("span", { class: "quiet" }, j.parent_job ? "after its parent" : "–");
}

export function schedule(j) {
  if (j.parent_job) return ["after ", el("a", { href: "#/" + jobPath(j.parent_job) }, j.parent_job)];
  return [el("code", null, j.schedule), j.timezone && el("small", null, j.timezone)];
}

export function buttons(j) {
  const button = (action, words, more) => may[action](j.name) && el("button", { "data-action": action, "data-job": j.name, "aria-label": `${words} ${j.name}`, ...more }, words);
  return [
    button("run", "Run", { disabled: Boolean(j.disabled) }),
    button("toggle", j.disabled ? "Enable" : "Disable"),
    menu(`More actions for ${j.name}`, button("delete", "Delete", { class: "danger" })),
  ];
}

function pager(total, search) {
  const page = pageOf(search), pages = Math.max(1, Math.ceil(total / pageRows));
  const words = `${total.toLocaleString()} ${total === 1 ? "job" : "jobs"}`;
  if (pages === 1 && page === 1) return el("p", { class: "quiet", role: "status" }, words);
  return turner(page, pages, `${words}, page ${page.toLocaleString()} of ${pages.toLocaleString()}`, (to) => address(search, { page: to === 1 ? "" : to }));
}

// noPage says that a list has no page of that number.
export const noPage = (search, first) =>
  el("p", { class: "quiet", role: "status" }, `This list has no page ${search.get("page")}. `, el("a", { href: first }, "To its first page"));

// turner leads from a page of a list to the others.
export function turner(page, pages, words, href) {
  const link = (to, text) => to >= 1 && to <= pages ? el("a", { class: "button", href: href(to) }, text) : el("span", { class: "button off" }, text);
  return el("nav", { class: "pager", "aria-label": "Pages of the list" }, link(page - 1, "Previous"), el("span", { role: "status" }, words), link(page + 1, "Next"));
}

export const actions = {};
