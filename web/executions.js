// The executions of all jobs. What is asked for stands in the address, so that
// it can be kept and sent; the server does it.

import { executionPath, get, jobPath, query } from "./api.js";
import { badge, choices, el, field, heading } from "./dom.js";
import { again, ended, status } from "./failures.js";
import { causes, lasted } from "./job.js";
import { may } from "./rights.js";
import { address, follow, hours, hoursField, startOf, stop } from "./search.js";
import * as selection from "./selection.js";
import { ago, duration, parse, since } from "./time.js";

const rowsShown = 50;
const outputShown = 300; // bytes of each

const outcomes = [["", "any"], ["bad", "not succeeded"], ["success", "succeeded"], ["failed", "failed"], ["killed", "killed"], ["interrupted", "interrupted"], ["lost", "lost"]];

export const title = () => "Executions";
export const pace = 2_000;

export async function load({ search }) {
  const asked = (name) => search.get(name) ?? "";
  const rows = await get("executions" + query({
    start: startOf(hours(search)), end: asked("before"), outcome: asked("outcome"), job: asked("job"), node: asked("node"), owner: asked("owner"),
    limit: rowsShown + 1, output_size_limit: outputShown,
  }));
  return { rows: rows.slice(0, rowsShown), more: rows.length > rowsShown };
}

export function show({ rows, more }, { search }) {
  const runnable = rows.filter((e) => may.run(e.job_name));
  return [
    heading("Executions"),
    filters(search),
    selection.bar(runnable.map(keyOf), runnable.length ? [["again", "Run again"]] : [], "execution", "executions"),
    rows.length > 0 ? table(rows) : el("p", { class: "quiet", role: "status" }, "No execution is like that."),
    el("nav", { class: "pager", "aria-label": "Pages of the list" },
      search.get("before") && el("a", { class: "button", href: address("#/executions", search, { before: "" }) }, "Newest"),
      more && el("a", { class: "button", href: address("#/executions", search, { before: rows.at(-1).started_at }) }, "Older")),
  ];
}

const keyOf = (e) => `${e.job_name}/${e.id}`;

function filters(search) {
  const value = (name) => search.get(name) ?? "";
  const text = (name, words) => field(words, el("input", { name, value: value(name), autocomplete: "off" }));
  return el("form", { class: "filters", role: "search" },
    text("job", "Job"),
    hoursField(search),
    field("Outcome", choices({ name: "outcome" }, value("outcome"), outcomes)),
    text("node", "Node"),
    text("owner", "Owner"),
    search.size > 0 && el("a", { class: "button", href: "#/executions" }, "Clear"));
}

function table(rows) {
  const picks = rows.some((e) => may.run(e.job_name));
  return el("table", { class: "list executions" },
    el("thead", null, el("tr", null, picks && selection.headBox(),
      ["Started", "Job", "Outcome", "Took", "Node", "Cause"].map((h) => el("th", { class: h.toLowerCase() }, h)), el("th", null, "Reason and last lines"),
      picks && el("th", { class: "again" }, el("span", { class: "unseen" }, "Actions")))),
    el("tbody", null, rows.map((e) => row(e, picks))));
}

function row(e, picks) {
  return el("tr", { "data-key": e.id },
    picks && (may.run(e.job_name) ? selection.box(keyOf(e), `${e.job_name}, ${e.id}`) : el("td")),
    el("td", { "data-label": "Started" }, el("a", { href: `#/${executionPath(e.job_name, e.id)}` }, ago(parse(e.started_at)))),
    el("th", { scope: "row", "data-label": "Job" }, el("a", { href: "#/" + jobPath(e.job_name) }, e.job_name)),
    el("td", { "data-label": "Outcome" }, badge(e.outcome || "running"), e.outcome !== "success" && status(e) && el("small", null, status(e))),
    el("td", { "data-label": "Took" }, e.outcome ? duration(lasted(e)) : since(parse(e.started_at))),
    el("td", { "data-label": "Node" }, e.node_name),
    el("td", { "data-label": "Cause" }, causes[e.cause] ?? e.cause, e.attempt > 1 && `, attempt ${e.attempt}`),
    el("td", { "data-label": "Output", class: "excerpt" }, el("code", null, ended(e))),
    picks && el("td", null, may.run(e.job_name) && again(e)));
}

export function typed(event) {
  if (!selection.pick(event.target)) follow(event, "#/executions", "before");
}

export function leave() {
  stop();
  selection.forget();
}

export const actions = {};
