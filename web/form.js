// Create and edit: fields beside the JSON. Both show one draft; what is typed in
// one appears in the other. The draft is kept with the tab until it is saved or
// given up, so that neither Back nor a reload nor a new sign-in loses it.

import { connection, get, jobPath, query, read, Refused, write } from "./api.js";
import { choices, el, heading, panel, render } from "./dom.js";
import { may } from "./rights.js";
import { at, until } from "./time.js";

const typingPause = 300; // milliseconds of quiet before a schedule is checked
const shown = ["id", "success_count", "error_count", "last_success", "last_error", "dependent_jobs", "status", "next", "notices_lost"]; // by the server, not set
const config = { shell: { shell: "true", command: "" }, http: { method: "GET" } };
const blank = { name: "", schedule: "", executor: "shell", executor_config: config.shell };
const example = {
  name: "hello", schedule: "@every 10s", executor: "shell",
  executor_config: { shell: "true", command: "echo hello from $BELFRY_NODE at $(date)" },
};

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// pair splits at the first of a character, which has to be there.
function pair(text, between, form) {
  const i = text.indexOf(between);
  if (i < 1) throw new Error(`"${text}" is not ${form}`);
  return [text.slice(0, i).trim(), text.slice(i + 1).trim()];
}

const written = (o) => Object.entries(o ?? {}).map((kv) => kv.join("="));
const words = (text) => text.split(/[\s,]+/).filter(Boolean);

// kinds say how a value is written in a field, and read from there.
const kinds = {
  text: [(v) => v ?? "", (text) => text],
  number: [(v) => v ?? "", Number],
  check: [Boolean, Boolean],
  flag: [(v) => v === "true", (on) => on && "true"],
  words: [(v) => (v ?? []).join(", "), words],
  pairs: [(v) => written(v).join("\n"), (text) => Object.fromEntries(lines(text).map((l) => pair(l, "=", "name=value")))],
  env: [
    (v) => (v ?? "").replace(/\\?,/g, (c) => (c === "," ? "\n" : ",")),
    (text) => lines(text).map((l) => l.replaceAll(",", "\\,")).join(","),
  ],
  notify: [
    (v) => (v ?? []).map((n) => `${n.on.join(", ")}: ${n.mail ?? n.webhook}${n.every ? " every" : ""}`).join("\n"),
    (text) => lines(text).map((l) => {
      const [on, to, every] = [...pair(l, ":", "events: receiver"), / every$/.test(l)];
      const whom = to.replace(/ every$/, "");
      return { on: words(on), [whom.includes("@") && !whom.includes("/") ? "mail" : "webhook"]: whom, ...(every && { every }) };
    }),
  ],
  processors: [
    (v) => Object.entries(v ?? {}).map(([name, o]) => [name, ...written(o)].join(" ")).join("\n"),
    (text) => Object.fromEntries(lines(text).map((l) => {
      const [name, ...rest] = l.split(/\s+/);
      return [name, Object.fromEntries(rest.map((s) => pair(s, "=", "name=value")))];
    })),
  ],
};

const concurrencies = [["allow", "starts beside it"], ["forbid", "is skipped"], ["queue", "waits; only the newest does"], ["replace", "replaces it"]];
const duration = { placeholder: "for example 10m" };
const rows = (n, placeholder) => ({ rows: n, placeholder });

// The fields: name, label, kind, hint, attributes or choices. in says which
// executor reads it from executor_config.
const field = (name, label, kind = "text", hint = "", attributes = {}, of = "") => ({ name, label, kind, hint, attributes, of });
const groups = [
  ["", [
    field("name", "Name", "text", "Lower case letters, digits, _ and -", { required: true }),
    field("displayname", "Display name"),
    field("schedule", "Schedule", "text", "Second, minute, hour, day of month, month, day of week; or @every 90s, @hourly, @at 2030-01-31T12:00:00Z", { list: "schedules" }),
    field("timezone", "Time zone", "text", "", { placeholder: "the cluster's, or for example Europe/Berlin" }),
    field("parent_job", "Or runs after the job", "text", "Instead of a schedule"),
    field("executor", "Executor", "text", "", [["shell", "shell: run a command"], ["http", "http: make a request"]]),
    field("command", "Command", "text", "", rows(3), "shell"),
    field("shell", "through /bin/sh", "flag", "", {}, "shell"),
    field("env", "Environment", "env", "", rows(2, "NAME=value, one a line"), "shell"),
    field("cwd", "Working directory", "text", "", {}, "shell"),
    field("method", "Method", "text", "", { placeholder: "GET" }, "http"),
    field("url", "URL", "text", "", {}, "http"),
    field("body", "Body", "text", "", rows(2), "http"),
    field("expectCode", "Expected status", "text", "", { placeholder: "200-299" }, "http"),
    field("disabled", "disabled", "check"),
  ]],
  ["Placement and ownership", [
    field("tags", "Node tags", "pairs", "Empty: every node. role=web:2 picks two nodes that have role=web", rows(2, "role=web:1")),
    field("owner", "Owner"),
    field("owner_email", "Owner's email"),
    field("metadata", "Metadata", "pairs", "", rows(2, "team=data")),
    field("params", "Parameters", "pairs", "What a run may be given, with defaults", rows(2, "day=today")),
  ]],
  ["Rules", [
    field("retries", "Retries", "number", "", { type: "number", min: 0 }),
    field("retry_delay", "Retry delay", "text", "", duration),
    field("retry_max_delay", "Longest retry delay", "text", "The delay doubles with each retry", duration),
    field("timeout", "Timeout", "text", "", duration),
    field("concurrency", "If the previous run is still going, a new one", "text", "", concurrencies),
    field("mutex", "Mutex", "text", "Jobs with the same mutex run one at a time"),
    field("catchup", "Catch up", "text", "How late a missed run may still start", duration),
    field("skip_on", "Skip on the days of calendars", "words"),
    field("parent_on", "Runs after the parent's", "text", "", [["", "success"], ["failure", "failure"], ["any", "end, however it ended"]]),
    field("delivery", "Delivery", "text", "", [["", "at-most-once"], ["at-least-once", "at-least-once"]]),
    field("max_runtime", "Overdue if a run takes longer than", "text", "", duration),
    field("max_silence", "Overdue if there is no success for", "text", "", duration),
    field("disable_after", "Disable after failures in a row", "number", "", { type: "number", min: 0 }),
    field("keep", "Executions kept", "number", "", { type: "number", min: 0 }),
    field("starts_at", "Starts at", "text", "", { placeholder: "2030-01-31T12:00:00Z" }),
    field("expires_at", "Expires at", "text", "", { placeholder: "2030-01-31T12:00:00Z" }),
    field("ephemeral", "delete after the first success", "check"),
  ]],
  ["Notices and processors", [
    field("notify", "Notices", "notify", "One per line. Events: start, end, failed, recovered, missed, overdue, overrun, lost; then a webhook URL or an email address. Add every to hear of each failure, not only the first", rows(2, "failed, recovered: ops@example.com")),
    field("processors", "Processors", "processors", "One per line, with its settings", rows(2, "log forward=true")),
  ]],
];
const byName = Object.fromEntries(groups.flatMap(([, list]) => list).map((f) => [f.name, f]));

export const title = ({ names }) => (names.length ? `Edit ${names[0]}` : "New job");

const empty = (v) => !v || typeof v === "object" && Object.keys(v).length === 0;
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// settable is what of a job can be set, without what is empty.
const settable = (job) => Object.fromEntries(Object.entries(job).filter(([k, v]) => !shown.includes(k) && !empty(v) && !(k === "concurrency" && v === "allow")));

// draft is what is typed: doc, and base and rev, the job that it began with (rev
// 0: there is none). invalid has the texts of fields that say nothing yet,
// late what was set while the JSON did so, configs those of the other executors.
let draft = null;
let place = ""; // where the draft is kept
let job = null; // as the server has it: doc and rev

const begin = ({ doc, rev }, start) => ({ base: doc, doc: structuredClone(start ?? doc), rev, invalid: {}, late: [], configs: {} });

const none = { doc: {}, rev: 0 };

async function find(name) {
  try {
    const { doc, rev } = await read(jobPath(name));
    return { doc: settable(doc), rev };
  } catch (err) {
    if (err.status === 404) return none;
    throw err;
  }
}

// load also learns what has become of the job while it is edited.
export async function load({ hash, names: [name] }) {
  job = name ? await find(name) : none;
  if (name && job === none && !sessionStorage.getItem("draft " + hash)) throw new Refused(404);
  if (draft && place === "draft " + hash && document.getElementById("f-json")) follow();
}

// show leaves the form to enter: the reader's typing is not to be read over.
export const show = (_, { names: [name] }) => [
  heading(name ? `Edit ${name}` : "New job"),
  el("form", { id: "editor", class: "editor", "data-keep": true, novalidate: true }),
];

export const concerns = (event, { names: [name] }) => event.type === "job" && event.job === name;

export function enter({ hash, names: [name], search }) {
  const form = document.getElementById("editor");
  if (!form || form.firstChild) return; // awake again: the draft is still there
  place = "draft " + hash;
  const kept = JSON.parse(sessionStorage.getItem(place));
  draft = kept ?? begin(job, name ? null : search.has("example") ? example : blank);
  const allowed = name ? may.edit(name) : may.create();
  render(form, fields(name, allowed), jsonPanel(allowed));
  fill();
  if (kept) tell("Your unsaved changes were restored.");
  if (kept) follow();
  checkSchedule();
}

export function leave() {
  clearTimeout(typing);
}

// merge returns theirs with what mine has changed of base, and adds to told
// what theirs has changed, and to both what each has changed in its own way.
function merge(base, mine, theirs, path, told, both) {
  const map = (v) => v && typeof v === "object" && !Array.isArray(v);
  if (map(mine) && map(theirs)) {
    const all = { ...theirs, ...mine };
    return Object.fromEntries(Object.keys(all).map((k) => [k, merge(base?.[k], mine[k], theirs[k], path ? path + "." + k : k, told, both)]).filter(([, v]) => v !== undefined));
  }
  if (!same(base, theirs)) (same(base, mine) || same(mine, theirs) ? told : both).push(path);
  return same(base, mine) ? theirs : mine;
}

// follow puts what was typed onto what the job is now: only what was changed
// here is saved. It returns whether the job was another.
function follow() {
  if (draft.rev === job.rev) return false;
  const told = [], both = [];
  if (job === none) {
    tell("This job has been deleted. Saving creates it again.");
    draft = { ...draft, base: {}, rev: 0 };
  } else {
    const doc = merge(draft.base, draft.doc, job.doc, "", told, both);
    tell([told.length > 0 && `Meanwhile this was changed elsewhere: ${told.join(", ")}. Your changes are kept. `,
      both.length > 0 && `Changed both here and elsewhere: ${both.join(", ")}. Saving overwrites the other value.`].filter(Boolean).join("") || "Meanwhile the job was saved elsewhere.");
    draft = { ...draft, rev: job.rev, base: job.doc, doc };
  }
  if (sessionStorage.getItem(place)) keep();
  fill(document.activeElement);
  return true;
}

const keep = () => sessionStorage.setItem(place, JSON.stringify(draft));

// tell says what has become of the draft, until it is saved or begun anew.
function tell(text) {
  render(document.getElementById("notice"), text, " ", el("button", { "data-action": "restart" }, "Start over"));
}

// box is a labelled control with a place for what is wrong with it.
function box({ name, label, kind, hint, attributes }) {
  const all = { id: "f-" + name, name, "aria-describedby": `h-${name} e-${name}`, autocomplete: "off", spellcheck: "false" };
  if (kind === "check" || kind === "flag") return el("label", { class: "check" }, el("input", { ...all, type: "checkbox" }), " ", label);
  const control = Array.isArray(attributes) ? choices(all, "", attributes) : el(attributes.rows ? "textarea" : "input", { ...all, ...attributes });
  return el("div", { class: "field" }, el("label", { for: "f-" + name }, label), control,
    hint && el("small", { id: "h-" + name }, hint), el("small", { class: "error", id: "e-" + name, role: "status" }),
    name === "timezone" && el("div", { id: "ticks", role: "status", class: "ticks" }));
}

function group([title, list]) {
  const part = (of) => el("div", { class: "group", id: of && of + "-fields" }, list.filter((f) => f.of === of).map(box));
  const whole = title ? part("") : list.map((f) => (!f.of ? box(f) : f.of !== list[list.indexOf(f) - 1].of && part(f.of)));
  return title ? el("details", { open: list.some((f) => !same(given(f), undefined)) }, el("summary", null, title), whole) : whole;
}

function fields(name, allowed) {
  return panel("Job", null,
    el("div", { id: "notice", role: "status", class: "warning" }),
    el("fieldset", { disabled: !allowed }, groups.map(group)),
    el("datalist", { id: "schedules" }, ["@every 1m", "@hourly", "@daily", "~ ~ 3 * * *", "0 */15 * * * *", "@manually"].map((value) => el("option", { value }))),
    el("p", { class: "error", id: "e-form", role: "alert" }),
    el("div", { class: "actions" },
      allowed ? el("button", { class: "primary", "data-action": "save" }, name ? "Save" : "Create") : el("p", { class: "quiet" }, name ? "This token may not change this job." : "This token may not create jobs."),
      el("a", { class: "button", "data-action": "cancel", href: name ? "#/" + jobPath(name) : "#/jobs" }, "Cancel")));
}

function jsonPanel(allowed) {
  return panel("As JSON", null,
    el("textarea", { name: "json", id: "f-json", rows: 24, readonly: !allowed, spellcheck: "false", "aria-label": "The job as JSON", "aria-describedby": "e-json" }),
    el("small", { class: "error", id: "e-json", role: "status" }));
}

// home is the part of the draft that has a field's value.
const home = ({ of }) => (of ? draft.doc.executor_config ?? {} : draft.doc);
const given = (f) => home(f)[f.name];

// fill shows the draft in all controls but the one that is typed in. One that
// could not say all of a value leaves it to the JSON.
function fill(except) {
  const { elements } = document.getElementById("editor");
  for (const f of Object.values(byName)) {
    const [write, read] = kinds[f.kind], value = given(f), control = elements[f.name];
    if (control === except) continue;
    let text = "", whole = value === undefined;
    try {
      text = write(value);
      whole ||= same(read(text), value);
    } catch {
      // it is of another type
    }
    control[control.type === "checkbox" ? "checked" : "value"] = draft.invalid[f.name] ?? text;
    control.disabled = !whole && !(f.name in draft.invalid) || f.name === "name" && draft.rev !== 0;
  }
  if (!draft.doc.concurrency) elements.concurrency.value = "allow";
  if (elements.json !== except) elements.json.value = draft.invalid.json ?? JSON.stringify(draft.doc, null, 2);
  for (const executor of Object.keys(config)) document.getElementById(executor + "-fields").hidden = draft.doc.executor !== executor;
}

// set gives a field of the draft its value, or takes it away where that is empty.
function set(name, text) {
  const f = byName[name], value = kinds[f.kind][1](text);
  if (name === "executor") {
    draft.configs[draft.doc.executor] = draft.doc.executor_config;
    draft.doc.executor_config = draft.configs[value] ?? { ...config[value] };
  }
  if (f.of) draft.doc.executor_config ??= {};
  if (empty(value) || name === "concurrency" && value === "allow") delete home(f)[name];
  else home(f)[name] = value;
}

function setAll(text) {
  const doc = JSON.parse(text);
  if (doc === null || typeof doc !== "object" || Array.isArray(doc)) throw new Error("a job is a JSON object");
  const c = doc.executor_config ?? {};
  if (doc.executor_config === null || typeof c !== "object" || Array.isArray(c) || Object.values(c).some((v) => typeof v !== "string")) throw new Error("executor_config: must be an object of texts");
  if (draft.rev !== 0 && doc.name !== draft.base.name) throw new Error(`name: must stay ${draft.base.name}; a copy is made with New job`);
  draft.doc = doc;
  for (const f of Object.keys(byName)) complain(f, "");
  draft.late.forEach((typed) => set(...typed));
}

let typing = 0;

export function typed({ target }) {
  if (!target.closest("#editor")) return;
  const { name } = target, value = target.type === "checkbox" ? target.checked : target.value;
  const late = draft.late.length > 0;
  complain(name, "");
  delete draft.invalid[name];
  try {
    if (name === "json") {
      setAll(value);
      draft.late = [];
    } else {
      set(name, value);
      if ("json" in draft.invalid) draft.late.push([name, value]);
    }
  } catch (err) {
    draft.invalid[name] = value;
    complain(name, err.message);
  }
  keep();
  fill(name === "json" && late && !draft.late.length ? null : target);
  if (!["json", "name", "schedule", "timezone"].includes(name)) return;
  clearTimeout(typing);
  typing = setTimeout(checkSchedule, typingPause);
}

// checkSchedule shows when the schedule falls due, or what is wrong with it.
async function checkSchedule() {
  const asked = { schedule: draft.doc.schedule, timezone: draft.doc.timezone, name: draft.doc.name, count: 5 };
  const current = () => document.getElementById("ticks") && asked.schedule === draft.doc.schedule && asked.timezone === draft.doc.timezone;
  complain("schedule", "");
  complain("timezone", "");
  if (!asked.schedule) {
    render(document.getElementById("ticks"));
    return;
  }
  try {
    const answer = await get("schedule" + query(asked));
    if (current()) showTicks(answer);
  } catch (err) {
    if (!current()) return;
    render(document.getElementById("ticks"));
    if (err instanceof Refused) complainOf(err.message);
  }
}

function showTicks({ next, words }) {
  render(document.getElementById("ticks"),
    words && el("div", null, words),
    next.length === 0 ? "Runs by hand only." : ["Runs next", el("ol", { class: "plain" }, next.map((t) => el("li", null, until(new Date(t)), " · ", at(new Date(t)))))]);
}

// complain says at a field what is wrong with it; true if there is that field.
function complain(name, text) {
  const place = document.getElementById("e-" + name);
  if (!place) return false;
  place.textContent = text;
  const control = document.getElementById("f-" + name);
  if (text) control?.setAttribute("aria-invalid", "true");
  else control?.removeAttribute("aria-invalid");
  return true;
}

// complainOf shows an answer of the server at the field that it names.
function complainOf(message) {
  const text = message.replace(/^the job is invalid: /, "");
  const [, name, rest] = /^(?:executor_config[.:] ?)?"?([a-zA-Z_]+)"?: (.*)$/s.exec(text) ?? [];
  if (!name || !complain(name, rest)) complain("form", text);
  const control = document.getElementById("f-" + name);
  control?.closest("details")?.setAttribute("open", "");
  control?.focus();
}

// lacks is what no job can do without, though the server takes it.
function lacks({ name, executor, executor_config: c = {} }) {
  if (!name) return "name: is missing";
  if (executor === "shell" && !c.command?.trim()) return "command: is missing; the job would have nothing to run";
  if (executor === "http" && !c.url) return "url: is missing";
}

// save stores the draft. What is wrong stays written in the form.
async function save(_, { names: [name] }) {
  complain("form", "");
  const [invalid] = Object.keys(draft.invalid);
  const lack = invalid ? `${invalid}: ${document.getElementById("e-" + invalid).textContent}` : lacks(draft.doc);
  if (lack) return complainOf(lack);
  try {
    await write("PUT", jobPath(draft.doc.name), draft.doc, { "Belfry-Rev": draft.rev });
  } catch (err) {
    if (err.status === 412 && draft.rev === 0) return complainOf("name: there is a job of that name; edit that one, or choose another");
    if (err.status === 412) return changed();
    if (connection.since) complain("form", "The server does not answer; nothing is known to have changed. Save again when it does.");
    else complainOf(err.message);
    if (err.status === 401 || err.status === 403 || !(err instanceof Refused)) throw err;
    return;
  }
  sessionStorage.removeItem(place);
  location.hash = "#/" + jobPath(draft.doc.name);
  return name ? `${draft.doc.name} was changed.` : `${draft.doc.name} was created.`;
}

// changed puts the draft onto what the job has become, for another look at it.
async function changed() {
  job = await find(draft.doc.name);
  follow();
  complain("form", "Not saved: the job has changed since you opened it. Check it and save again.");
}

function restart(_, { names: [name], search }) {
  sessionStorage.removeItem(place);
  draft = begin(job, name ? null : search.has("example") ? example : blank);
  render(document.getElementById("notice"));
  for (const f of ["json", "form", ...Object.keys(byName)]) complain(f, "");
  fill();
  checkSchedule();
}

function cancel({ href }, { names: [name] }) {
  sessionStorage.removeItem(place);
  location.hash = name ? "#/" + jobPath(name) : "#/jobs";
}

export const actions = { save, restart, cancel };
