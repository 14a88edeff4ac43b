// Create and edit: fields for what most jobs need, the JSON beside them for
// the rest. Both show one draft; what is typed in one appears in the other.

import { get, jobPath, query, Refused, write } from "./api.js";
import { choices, el, field, heading, panel, render } from "./dom.js";
import { at, until } from "./time.js";

const typingPause = 300; // milliseconds of quiet before a schedule is checked
const shown = ["id", "success_count", "error_count", "last_success", "last_error", "dependent_jobs", "status", "next"]; // by the server, not set
const example = {
  name: "hello", schedule: "@every 10s", executor: "shell",
  executor_config: { shell: "true", command: "echo hello from $BELFRY_NODE at $(date)" },
};
const blank = { name: "", schedule: "", executor: "shell", executor_config: { shell: "true", command: "" } };

export const title = ({ names }) => (names.length ? `Edit ${names[0]}` : "New job");

export async function load({ names: [name] }) {
  return name ? get(jobPath(name)) : null;
}

// show leaves the form to enter: the reader's typing is not to be read over.
export function show(job, { names: [name] }) {
  return [
    heading(name ? `Edit ${name}` : "New job"),
    el("form", { id: "editor", class: "editor", "data-keep": true, novalidate: true }),
  ];
}

export const concerns = () => false;

let draft = null;
let editing = ""; // the name of the job that is edited, or none

export async function enter({ names: [name = ""], search }) {
  const form = document.getElementById("editor");
  if (!form || form.firstChild) return; // awake again: the draft is still there
  editing = name;
  draft = name ? settable(await get(jobPath(name))) : structuredClone(search.has("example") ? example : blank);
  render(form, fields(), jsonPanel());
  fill(form);
  checkSchedule();
}

export function leave() {
  clearTimeout(typing);
}

// settable is what of a job can be set, without what is empty.
function settable(job) {
  const empty = (v) => v === null || v === "" || v === false || v === 0 || (typeof v === "object" && Object.keys(v).length === 0);
  return Object.fromEntries(Object.entries(job).filter(([k, v]) => !shown.includes(k) && !empty(v)));
}

// box is a labelled input with a place for what is wrong with it.
function box(name, label, attributes, hint) {
  const control = el(attributes.rows ? "textarea" : "input", { id: "f-" + name, name, "aria-describedby": `h-${name} e-${name}`, autocomplete: "off", spellcheck: "false", ...attributes });
  return el("div", { class: "field" }, el("label", { for: "f-" + name }, label), control,
    hint && el("small", { id: "h-" + name }, hint), el("small", { class: "error", id: "e-" + name, role: "status" }));
}

function fields() {
  return panel("Job", null,
    box("name", "Name", { readonly: Boolean(editing), required: true }, "Lower case letters, digits, _ and -"),
    box("displayname", "Shown as", {}),
    box("schedule", "Schedule", { list: "schedules" }, "Second, minute, hour, day of month, month, day of week; or @every 90s, @hourly, @at 2030-01-31T12:00:00Z"),
    el("datalist", { id: "schedules" }, ["@every 1m", "@hourly", "@daily", "~ ~ 3 * * *", "0 */15 * * * *", "@manually"].map((value) => el("option", { value }))),
    box("timezone", "Time zone", { placeholder: "the cluster's, or for example Europe/Berlin" }),
    el("div", { id: "ticks", role: "status", class: "ticks" }),
    box("parent_job", "Or after the job", {}, "It then runs after each success of that job, without a schedule"),
    field("Does", choices({ name: "executor" }, "", [["shell", "run a command"], ["http", "make a request"]])),
    el("div", { id: "shell-fields" },
      box("command", "Command", { rows: 3 }),
      el("label", { class: "check" }, el("input", { type: "checkbox", name: "shell" }), " through /bin/sh"),
      box("timeout", "Ends after", { placeholder: "never, or for example 10m" })),
    el("div", { id: "http-fields" },
      box("method", "Method", { placeholder: "GET" }), box("url", "URL", { type: "url" })),
    box("retries", "Retries", { type: "number", min: 0 }),
    field("While an earlier run goes on, a run", choices({ name: "concurrency" }, "",
      [["allow", "starts beside it"], ["forbid", "is skipped"], ["queue", "waits; only the newest does"], ["replace", "ends it, and starts"]])),
    el("label", { class: "check" }, el("input", { type: "checkbox", name: "disabled" }), " schedule off"),
    el("p", { class: "error", id: "e-form", role: "alert" }),
    el("div", { class: "actions" },
      el("button", { class: "primary", "data-action": "save" }, editing ? "Save" : "Create"),
      el("a", { class: "button", href: editing ? "#/" + jobPath(editing) : "#/jobs" }, "Cancel")));
}

function jsonPanel() {
  return panel("As JSON", null,
    el("textarea", { name: "json", id: "f-json", rows: 24, spellcheck: "false", "aria-label": "The job as JSON", "aria-describedby": "e-json" }),
    el("small", { class: "error", id: "e-json" }));
}

// Where a field's value stands in the draft.
const plain = ["name", "displayname", "schedule", "timezone", "parent_job", "executor"];
const config = ["command", "timeout", "method", "url"];

// fill shows the draft in all controls but the one that is typed in.
function fill(form, except) {
  const set = (name, property, value) => {
    if (form.elements[name] !== except) form.elements[name][property] = value;
  };
  for (const name of plain) set(name, "value", draft[name] ?? "");
  for (const name of config) set(name, "value", draft.executor_config?.[name] ?? "");
  set("shell", "checked", draft.executor_config?.shell === "true");
  set("concurrency", "value", draft.concurrency || "allow");
  set("disabled", "checked", Boolean(draft.disabled));
  set("retries", "value", draft.retries ?? "");
  set("json", "value", JSON.stringify(draft, null, 2));
  document.getElementById("shell-fields").hidden = draft.executor !== "shell";
  document.getElementById("http-fields").hidden = draft.executor !== "http";
}

// assign sets what is not empty, and takes away what is.
function assign(object, name, value) {
  if (value) object[name] = value;
  else delete object[name];
}

function take({ name, value, checked }) {
  draft.executor_config ??= {};
  if (plain.includes(name)) assign(draft, name, value);
  else if (config.includes(name)) assign(draft.executor_config, name, value);
  else if (name === "shell") assign(draft.executor_config, name, checked && "true");
  else if (name === "concurrency") assign(draft, name, value !== "allow" && value);
  else if (name === "disabled") assign(draft, name, checked);
  else if (name === "retries") assign(draft, name, Number(value));
  if (name === "executor") draft.executor_config = value === "shell" ? { shell: "true" } : { method: "GET" };
}

let typing = 0;

export function typed({ target }) {
  const form = target.closest("#editor");
  if (!form) return;
  complain(target.name, "");
  if (target.name === "json") {
    try {
      const given = JSON.parse(target.value);
      if (given === null || typeof given !== "object" || Array.isArray(given)) throw new Error("a job is a JSON object");
      draft = given;
    } catch (err) {
      complain("json", err.message);
      return;
    }
  } else {
    take(target);
  }
  fill(form, target);
  clearTimeout(typing);
  typing = setTimeout(checkSchedule, typingPause);
}

// checkSchedule shows when the schedule falls due, or what is wrong with it.
async function checkSchedule() {
  const asked = { schedule: draft.schedule, timezone: draft.timezone, name: draft.name, count: 5 };
  const current = () => document.getElementById("ticks") && asked.schedule === draft.schedule && asked.timezone === draft.timezone;
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
  const [, name, rest] = /^(?:executor_config[.:] ?)?"?([a-z_]+)"?: (.*)$/s.exec(text) ?? [];
  if (!name || !complain(name, rest)) complain("form", text);
  return name;
}

async function exists(name) {
  try {
    await get(jobPath(name));
    return true;
  } catch (err) {
    if (err.status === 404) return false;
    throw err;
  }
}

async function save() {
  complain("form", "");
  if (document.getElementById("e-json").textContent) return;
  try {
    if (!draft.name) throw new Refused(400, "name: is missing");
    if (!editing && await exists(draft.name)) throw new Refused(409, "name: there is a job of that name; edit that one, or choose another");
    await write("POST", "jobs", draft);
  } catch (err) {
    if (!(err instanceof Refused)) throw err;
    document.getElementById("f-" + complainOf(err.message))?.focus();
    return;
  }
  location.hash = "#/" + jobPath(draft.name);
  return editing ? `${draft.name} was changed.` : `${draft.name} was created.`;
}

export const actions = { save };
