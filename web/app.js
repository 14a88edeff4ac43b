// The page as a whole: which view the address names, when it is read again,
// what buttons do, and what stands around the view.

import { connection, executionPath, get, jobPath, permitted, spent, token, write } from "./api.js";
import { el, field, released, render, update } from "./dom.js";
import { hush, listen, live } from "./live.js";
import { learn, may } from "./rights.js";
import { age, at, duration, parse, skew } from "./time.js";
import * as overview from "./overview.js";
import * as jobs from "./jobs.js";
import * as job from "./job.js";
import * as execution from "./execution.js";
import * as form from "./form.js";
import * as executions from "./executions.js";
import * as failures from "./failures.js";
import * as audit from "./audit.js";
import * as tokens from "./tokens.js";
import * as selection from "./selection.js";

// A view has load(route), which fetches; show(data, route, around), which says
// what should be there; title(route); and may have enter(route) and leave(),
// pause(), when the page is hidden until the next enter, concerns(event,
// route), and pace, the milliseconds between two loads.
const routes = [
  [/^\/?$/, "overview", overview],
  [/^\/jobs\/?$/, "jobs", jobs],
  [/^\/executions$/, "executions", executions],
  [/^\/failures$/, "failures", failures],
  [/^\/audit$/, "audit", audit],
  [/^\/tokens$/, "tokens", tokens],
  [/^\/new$/, "new", form],
  [/^\/jobs\/([^/]+)\/edit$/, "jobs", form],
  [/^\/jobs\/([^/]+)(?:\/show)?$/, "jobs", job], // with /show as in the addresses of Dkron's page
  [/^\/jobs\/([^/]+)\/executions\/([^/]+)$/, "jobs", execution],
];

const nowhere = {
  title: () => "No such page",
  load: async () => null,
  show: (_, { path }) => [el("h1", { tabindex: "-1" }, "There is no such page"), el("p", null, `Nothing has the address ${path}. `, el("a", { href: "#/" }, "Overview"))],
  concerns: () => false,
  actions: {},
};

const usualPace = 1_000; // milliseconds between two loads of a view
const requestCost = 1_700; // milliseconds that the page may take for a request, if things go on to change
const bytesCost = 60_000 / 220_000; // and for a byte
const burst = 20_000; // milliseconds of debt that nothing waits for
const pollPause = 3_000; // between two looks at the server that does not tell what changes
const livePause = 30_000; // and that does: what falls due is no change
const byId = (id) => document.getElementById(id);
const main = byId("main");

let route = null;
let turn = 0; // of the last refresh: what an older one brings is dropped
let reading = false; // a refresh is under way
let changed = false; // since it began, or since the last one
let begun = 0; // when it began
let debt = 0; // milliseconds that what was read lately should have taken, and has not
let counted = { at: 0, requests: 0, bytes: 0 }; // when that was computed, of how much
let failed = false; // it did not bring what it should
let timer = 0;
let around = null; // members, leader and pause, which stand around every view
let seen = null; // what was shown last: data, and the route that it is of
let aroundRead = 0; // when
let aroundDue = true; // they are to be read as well
let rights = null; // the promise that they are known; null: they are to be learned

// read says which view the address names, and with what.
function read() {
  const { hash } = location;
  const [path, search] = hash.slice(1).split("?");
  for (const [pattern, page, view] of [...routes, [/^/, "", nowhere]]) {
    const match = pattern.exec(path);
    if (match) return { hash, page, view, path, names: match.slice(1).map(decoded), search: new URLSearchParams(search) };
  }
}

function decoded(name) {
  try {
    return decodeURIComponent(name);
  } catch {
    return name; // somebody has typed it
  }
}

// places are how far each entry of the history was scrolled, in pixels. What
// the browser itself would restore is not there yet when it does.
const places = new Map(JSON.parse(sessionStorage.getItem("places")));
let entry = ""; // of the history; none while another is opened
history.scrollRestoration = "manual";

function settle(moved) {
  if (!history.state?.entry) history.replaceState({ entry: String(Math.random()) }, "");
  entry = history.state.entry;
  if (moved || places.has(entry)) scrollTo(0, places.get(entry) ?? 0);
}

function keepPlace() {
  if (entry) places.set(entry, scrollY);
}

async function open(event) {
  const before = route;
  entry = "";
  route = read();
  const moved = before?.path !== route.path;
  if (moved) {
    before?.view.leave?.();
    debt = 0; // the reader asked for what is read now
    counted = { at: performance.now(), ...spent };
    instead(connection.since ? away() : el("p", { class: "quiet" }, "Loading…"));
    markPage();
  }
  const mine = route;
  await refresh();
  if (mine !== route) return; // it was left meanwhile
  if (event?.isTrusted) main.querySelector(".filters")?.reset(); // to the address, unless it follows what is typed
  if (moved) {
    if (before) main.querySelector("h1")?.focus({ preventScroll: true });
    if (!document.hidden) route.view.enter?.(route);
  }
  settle(moved);
}

function markPage() {
  for (const link of document.querySelectorAll("[data-page]")) {
    if (link.dataset.page === route.page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = route.view.title(route) + " · belfry";
}

// refresh reads and shows everything now, but not while nobody sees it.
async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  const mine = ++turn;
  const now = route;
  const all = aroundDue || around === null || !live.open;
  reading = true;
  changed = aroundDue = false;
  begun = Date.now();
  try {
    rights ??= learn();
    const [data, fresh] = await Promise.all([now.view.load(now), all ? loadAround() : around, rights]);
    showAround(around = fresh);
    if (all) aroundRead = begun;
    if (mine !== turn) return;
    const again = seen?.route.hash === now.hash;
    seen = { data, route: now };
    show(again ? update : render);
    failed = false;
  } catch (err) {
    aroundDue = all;
    rights = null;
    if (mine !== turn) return;
    if (err.status === 401) return askForToken();
    if (connection.since === null) instead(failure(err));
    else if (seen?.route.hash !== now.hash) instead(away());
    failed = true;
  }
  reading = false;
  showConnection();
  plan();
}

// show writes the view. Lists that wait for the reader say so.
function show(put) {
  const waits = put(main, seen.route.view.show(seen.data, seen.route, around));
  byId("waiting").textContent = waits ? `This list has changed (${waits}). It updates once the pointer and the focus leave it.` : "";
}

// instead writes what stands in place of a view.
function instead(nodes) {
  seen = null;
  byId("waiting").textContent = "";
  render(main, nodes);
}

const away = () => [el("h1", { tabindex: "-1" }, "The server does not answer"), el("p", { role: "status" }, "This is shown as soon as it does.")];

// owed is how long the next load should wait for what the last ones cost: what
// changes now and then is shown at once, what changes all the time as often as
// a busy server and a slow line can bear.
function owed() {
  const at = performance.now();
  debt = Math.max(0, debt - (at - counted.at)) + Math.max((spent.requests - counted.requests) * requestCost, (spent.bytes - counted.bytes) * bytesCost);
  counted = { at, ...spent };
  return Math.max(0, debt - burst);
}

// plan has the view read again: soon if something has changed, else after a
// while. However much changes, one load follows the other at the view's pace.
function plan() {
  clearTimeout(timer);
  if (reading || document.hidden) return;
  const pace = Math.max(route.view.pace ?? usualPace, owed());
  const pause = changed ? pace : live.open && !failed ? livePause : Math.max(pace, pollPause);
  timer = setTimeout(refresh, Math.max(0, begun + pause - Date.now()));
}

// heard takes an event of the server.
function heard(event) {
  switch (event.type) {
    case "alive":
      break;
    case "reload":
      changed = true;
      aroundDue ||= Date.now() - aroundRead > livePause;
      break;
    case "hello": // what happened before it, nobody told
    case "leader":
    case "members":
    case "paused":
      aroundDue = changed = true;
      break;
    default:
      changed ||= !route.view.concerns || route.view.concerns(event, route);
  }
  if (changed) plan();
}

// cut goes on without the stream: the next look says whether anything answers.
function cut() {
  changed = true;
  plan();
}

// watch begins to hear and to age, or ends it.
function watch() {
  clearInterval(ageing);
  if (document.hidden) return hush();
  ageing = setInterval(() => {
    age();
    if (seen && released()) show(update);
  }, 1_000);
  listen(heard, cut);
}
let ageing = 0;

// askForToken stops reading until there is a token that the server takes.
function askForToken() {
  hush();
  showConnection();
  const wrong = token.get() !== "";
  instead(el("form", { class: "panel signin" },
    el("h1", { tabindex: "-1" }, "This server asks for a token"),
    wrong && el("p", { class: "error", role: "alert" }, "It does not take the one that you gave."),
    field("Token", el("input", { type: "password", id: "token", autocomplete: "current-password", required: true })),
    el("p", { class: "quiet" }, "It stays in this tab, and is forgotten with it."),
    el("div", { class: "actions" }, el("button", { class: "primary", "data-action": "signin" }, "Sign in"))));
  byId("token").focus();
}

function failure(err) {
  return [el("h1", { tabindex: "-1" }, "This could not be shown"), el("p", null, err.message), el("p", null, el("a", { href: "#/" }, "Overview"))];
}

// loadAround reads what every view has around it. Without a leader there is none to name.
function loadAround() {
  return Promise.all([permitted(get("members"), []), get("leader").catch(() => null), permitted(get("pause"), {}), permitted(get("hold"), [])]);
}

function showAround([members, leader, { paused }, holds]) {
  render(byId("members"), members.map((m) => memberChip(m, leader)), token.get() && el("li", null, el("button", { "data-action": "signout" }, "Sign out")));
  byId("new").hidden = !may.create();
  byId("audit-link").hidden = !may.audit();
  byId("tokens-link").hidden = !may.tokens();
  byId("paused").hidden = !paused && holds.length === 0;
  render(byId("paused"), paused && el("div", null, "Paused: new and changed jobs are refused, schedules go on. ", may.unpause() && el("button", { "data-action": "unpause" }, "Resume")),
    holds.map(({ why, metadata, by, since }) => el("div", null, "Held by ", by, " since ", at(parse(since)), ": ", why, ". ",
      metadata ? "Jobs do not start that have " + Object.entries(metadata).map((kv) => kv.join("=")).join(" and ") : "No job starts", ". ",
      may.release() && el("button", { "data-action": "release", "data-metadata": JSON.stringify(metadata ?? null) }, "Release"))));
}

function memberChip(member, leader) {
  const state = member.statusText;
  const part = (member.Name === leader?.Name ? " · leader" : state === "alive" ? "" : " · " + state) + (member.drained ? " · drained" : "");
  const about = `${member.Name}: ${state}, version ${member.Tags?.version ?? "unknown"}, ${member.Addr}:${member.Port}`;
  return el("li", { class: "chip", "data-key": member.Name, title: about }, el("span", { class: "dot " + (overview.nodeKinds[state] ?? "bad") }), member.Name + part);
}

function showConnection() {
  byId("clock").hidden = Math.abs(skew.behind) < 10_000;
  byId("clock").textContent = `The clock of this device is ${duration(Math.abs(skew.behind))} ${skew.behind > 0 ? "behind" : "ahead of"} the server's. Times here go by the server's.`;
  const bar = byId("connection");
  bar.hidden = connection.since === null;
  if (!bar.hidden) {
    render(bar, "The server has not answered since ", at(connection.since), connection.why && ` (${connection.why})`, ".", seen && " What stands below is from then.");
  }
}

// say tells what came of an action, to eyes and to screen readers.
let saidTimer = 0;
function say(text, bad = false) {
  clearTimeout(saidTimer);
  byId("said").className = bad ? "bad" : "";
  byId("said").textContent = text;
  saidTimer = setTimeout(() => { byId("said").textContent = ""; }, bad ? 15_000 : 5_000);
}

// confirmed asks before something that cannot be taken back, or that has fields to fill in.
function confirmed(question, verb, ...fields) {
  const dialog = byId("confirm");
  byId("confirm-question").textContent = question;
  byId("confirm-fields").replaceChildren(...fields); // who asks reads its own
  dialog.querySelector("[value=no]").onclick = () => dialog.close("no");
  dialog.querySelector("[value=yes]").textContent = verb;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// actions are what buttons do. One returns what to say, or nothing.
async function runAgain(job, execution) {
  const { params } = await get("executions/" + encodeURIComponent(execution));
  await write("POST", jobPath(job) + "/run", params ? { params: Object.fromEntries(Object.entries(params).filter(([, v]) => v !== "<hidden>")) } : {});
}

async function drain(node, verb, what) {
  await write("POST", `members/${encodeURIComponent(node)}/${verb}`);
  aroundDue = true;
  return `${node}: ${what}.`;
}

const actions = {
  skip() {
    main.focus();
  },
  async signin() {
    token.set(byId("token").value.trim());
    rights = null;
    await refresh();
    if (byId("token")) return;
    watch();
    main.querySelector("h1")?.focus();
    route.view.enter?.(route);
  },
  // show leads to a part of the view.
  async show({ target }) {
    byId(target).scrollIntoView();
    byId(target).focus();
  },
  async signout() {
    sessionStorage.clear(); // with what was typed
    location.reload();
  },
  async run({ job }) {
    const inputs = Object.entries((await get(jobPath(job))).params ?? {}).map(([name, value]) => el("input", { name, value, autocomplete: "off", "data-key": name }));
    if (inputs.length && !await confirmed(`Run ${job} with`, "Run", ...inputs.map((i) => field(i.name, i)))) return "";
    await write("POST", jobPath(job) + "/run", { params: Object.fromEntries(inputs.filter((i) => i.value !== "<hidden>").map((i) => [i.name, i.value])) });
    return `${job} was started.`;
  },
  async toggle({ job }) {
    const now = await write("POST", jobPath(job) + "/toggle");
    return now.disabled ? `The schedule of ${job} is off.` : `The schedule of ${job} is on.`;
  },
  async delete({ job }) {
    if (!await confirmed(`Delete the job ${job} and the record of its runs?`, "Delete")) return "";
    await write("DELETE", jobPath(job));
    if (route.view !== jobs) location.hash = "#/jobs";
    return `${job} was deleted.`;
  },
  async kill({ job, execution }) {
    if (!await confirmed(`End this run of ${job}?`, "End it")) return "";
    await write("POST", executionPath(job, execution) + "/kill");
    return `The run of ${job} was told to end.`;
  },
  async again({ job, execution }) {
    await runAgain(job, execution);
    return `${job} was started.`;
  },
  async selected({ verb }) {
    const [words, done, act] = {
      run: ["Run", "started", (name) => write("POST", jobPath(name) + "/run", {})],
      enable: ["Enable", "enabled", (name) => write("POST", jobPath(name) + "/toggle?disabled=false")],
      disable: ["Disable", "disabled", (name) => write("POST", jobPath(name) + "/toggle?disabled=true")],
      again: ["Run again", "run again", (key) => runAgain(...key.split("/"))],
    }[verb];
    const keys = selection.keys(); // some may leave the list meanwhile
    if (!await confirmed(`${words} ${selection.how()}?`, words)) return "";
    return selection.each(keys, act, done);
  },
  async revoke({ accessor, name }) {
    if (!await confirmed(`Delete the token ${name}? Who uses it is refused from then on.`, "Delete")) return "";
    await write("DELETE", "acl/tokens/" + encodeURIComponent(accessor));
    return `The token ${name} was deleted.`;
  },
  async hold() {
    const why = el("input", { required: true, autocomplete: "off", "data-key": "why" });
    if (!await confirmed("No job starts until somebody releases this. Schedules go on, and their ticks are skipped.", "Hold", field("Why", why))) return "";
    await write("POST", "hold", { why: why.value });
    aroundDue = true;
    return "All jobs are held.";
  },
  drain: ({ node }) => drain(node, "drain", "Nothing starts on it any more"),
  undrain: ({ node }) => drain(node, "undrain", "Jobs start on it again"),
  async release({ metadata }) {
    aroundDue = true;
    await write("POST", "release", { metadata: JSON.parse(metadata) });
    return "Jobs start again.";
  },
  async unpause() {
    await write("POST", "unpause");
    return "Jobs can be changed again.";
  },
};

const underWay = new Set(); // what was begun with a button and is not done yet

// closeMenus closes menus when something else is used.
function closeMenus(event) {
  for (const menu of document.querySelectorAll(".menu[open]")) {
    if (event.key === "Escape") menu.firstElementChild.focus();
    if (event.key === "Escape" || event.type !== "keydown" && !menu.contains(event.target) || event.type === "click" && event.target.matches("[data-action]")) menu.open = false;
  }
}

async function act(event) {
  const button = event.target.closest("[data-action]");
  if (!button) return;
  event.preventDefault();
  const what = JSON.stringify(button.dataset);
  if (event.detail > 1 || underWay.has(what)) return; // the second of a double click
  underWay.add(what);
  try {
    const said = await (actions[button.dataset.action] ?? route.view.actions[button.dataset.action])(button.dataset, route);
    if (said) say(said);
    if (said !== undefined) await refresh();
    if (document.activeElement === document.body) main.querySelector("h1")?.focus(); // the button is gone
  } catch (err) {
    say(connection.since ? "The server does not answer; nothing is known to have changed." : err.message, true);
    showConnection();
    if (err.status === 401 || err.status === 403) { // they are fewer than they were
      rights = null;
      refresh();
    }
  } finally {
    underWay.delete(what);
  }
}

// wake goes on after the page was hidden, or stops.
function wake() {
  watch();
  aroundDue = true;
  rights = null;
  if (document.hidden) {
    clearTimeout(timer);
    route.view.pause?.();
    return;
  }
  refresh().then(() => route.view.enter?.(route));
}

addEventListener("hashchange", open);
addEventListener("scroll", keepPlace, { passive: true });
addEventListener("pagehide", () => sessionStorage.setItem("places", JSON.stringify([...places].slice(-50))));
addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.target.closest("button") && event.preventDefault());
document.addEventListener("visibilitychange", wake);
document.addEventListener("click", act);
for (const type of ["click", "keydown", "focusin"]) document.addEventListener(type, closeMenus);
document.addEventListener("input", (event) => route.view.typed?.(event));
document.addEventListener("submit", (event) => {
  if (event.target.method !== "dialog") event.preventDefault();
});
open();
watch();
