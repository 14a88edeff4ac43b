// Who changed what, for who may see it.

import { jobPath, list, query } from "./api.js";
import { el, field, heading } from "./dom.js";
import { pageOf, turner } from "./jobs.js";
import { address, follow, stop } from "./search.js";
import { at, parse } from "./time.js";

const pageRows = 50;

export const title = () => "Audit trail";
export const pace = 5_000;

export function load({ search }) {
  const asked = Object.fromEntries(["job", "actor", "action"].map((name) => [name, search.get(name) ?? ""]));
  const start = (pageOf(search) - 1) * pageRows;
  return list("audit" + query({ ...asked, _start: start, _end: start + pageRows }));
}

export function show({ rows, total }, { search }) {
  const filter = (name, words, placeholder) => field(words, el("input", { name, value: search.get(name) ?? "", placeholder, autocomplete: "off" }));
  const page = pageOf(search), pages = Math.max(1, Math.ceil(total / pageRows));
  return [
    heading("Audit trail"),
    el("form", { class: "filters", role: "search" },
      filter("job", "Job"), filter("actor", "Actor", "accessor of a token"), filter("action", "Action", "such as job.put"),
      search.size > 0 && el("a", { class: "button", href: "#/audit" }, "Clear")),
    rows.length ? el("table", { class: "list" },
      el("thead", null, el("tr", null, ["When", "Who", "Action", "What", "Change"].map((h) => el("th", null, h)))),
      el("tbody", null, rows.map(row))) : el("p", { class: "quiet", role: "status" }, "No change is like that."),
    pages > 1 && turner(page, pages, `${total.toLocaleString()} changes, page ${page} of ${pages}`, (to) => address("#/audit", search, { page: to === 1 ? "" : to })),
  ];
}

const text = (v) => (v === undefined ? "–" : typeof v === "string" ? v || "“”" : JSON.stringify(v));

function row(c) {
  const fields = [...new Set([...Object.keys(c.before ?? {}), ...Object.keys(c.after ?? {})])];
  return el("tr", { "data-key": [c.time, c.actor, c.action, c.job_name, c.object].join(" ") },
    el("td", { "data-label": "When" }, at(parse(c.time))),
    el("td", { "data-label": "Who" }, c.actor_name || c.actor, el("small", null, c.address)),
    el("td", { "data-label": "Action" }, c.action),
    el("td", { "data-label": "What" }, c.job_name && el("a", { href: "#/" + jobPath(c.job_name) }, c.job_name), c.object && el("small", null, c.object)),
    el("td", { "data-label": "Change" }, fields.length > 0 && el("details", null,
      el("summary", null, fields.slice(0, 4).join(", ") + (fields.length > 4 ? ", …" : "")),
      el("dl", null, fields.map((f) => [el("dt", null, f), el("dd", null, el("code", null, c.before ? `${text(c.before[f])} → ` : "", text(c.after?.[f])))])))));
}

export const typed = (event) => follow(event, "#/audit", "page");
export const leave = stop;
export const actions = {};
