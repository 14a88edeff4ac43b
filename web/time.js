// Times and durations, as people read them: in the zone of the viewer, with
// UTC on hover. How far they are from now goes on by itself.

import { el, selected } from "./dom.js";

const second = 1000, minute = 60 * second, hour = 60 * minute, day = 24 * hour;

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// now is the time by the server's clock, in milliseconds: that of the viewer may
// be wrong. skew.behind is how far it is behind, 0 if about right.
export const skew = { behind: 0 };
export const now = () => Date.now() + skew.behind;

const clockStep = 2_000; // milliseconds; the server says its time in whole seconds

// setClock learns from an answer: when it was made, by the server's clock, and
// when it was asked for, by this one.
export function setClock(made, asked) {
  const took = Date.now() - asked;
  const behind = Date.parse(made) + 500 - asked - took / 2;
  if (took > clockStep) return;
  if (Math.abs(behind) < clockStep) skew.behind = 0;
  else if (Math.abs(behind - skew.behind) > clockStep) skew.behind = behind;
}

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

// parse returns null for a time that is none: the API writes it as year 1, or
// as the first second of 1970 where it is the next run of a child.
export function parse(text) {
  const t = new Date(text || 0);
  return t > 0 ? t : null;
}

// duration writes milliseconds with at most two units.
export function duration(ms) {
  const s = Math.max(0, ms) / second;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return two(s, 60, "min", 1, "s");
  if (s < 86400) return two(s, 3600, "h", 60, "min");
  return two(s, 86400, "d", 3600, "h");
}

function two(s, large, largeName, small, smallName) {
  const rest = Math.floor((s % large) / small);
  return `${Math.floor(s / large)} ${largeName}` + (rest ? ` ${rest} ${smallName}` : "");
}

// brief writes milliseconds with one unit.
export function brief(ms) {
  for (const [unit, name] of [[day, "d"], [hour, "h"], [minute, "min"]]) {
    if (ms >= unit) return `${Math.floor(ms / unit)} ${name}`;
  }
  return `${Math.floor(Math.max(0, ms) / second)} s`;
}

// How a time is said by its distance from now, in milliseconds: when something
// was, when it will be, and how long it goes on. What will be and should have
// been is due, until it is read again.
const wordings = {
  ago: (ms) => (ms < second ? "now" : brief(ms) + " ago"),
  until: (ms) => (ms > -second ? "due" : "in " + brief(-ms)),
  since: (ms) => (ms < minute ? brief(ms) : duration(ms)),
};

const utc = (t) => t.toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");

// exact is a time with its date, and in UTC.
export const exact = (t) => `${full.format(t)} · ${utc(t)}`;

const sameDay = (a, b) => a.toDateString() === b.toDateString();

// absolute leaves out today's date.
export function absolute(t) {
  return (sameDay(t, new Date(now())) ? clock : full).format(t);
}

// at shows a time as it is.
export function at(t) {
  return el("time", { datetime: t.toISOString(), title: utc(t) }, absolute(t));
}

function relative(t, wording, more) {
  return el("time", { datetime: t.toISOString(), title: exact(t), class: "relative", "data-wording": wording, ...more }, wordings[wording](now() - t));
}

export const ago = (t) => relative(t, "ago");
export const until = (t) => relative(t, "until");
export const since = (t) => relative(t, "since");

// age has the times in the document say how far they are by now.
export function age() {
  for (const node of document.querySelectorAll("[data-wording]")) {
    const words = wordings[node.dataset.wording](now() - new Date(node.dateTime));
    if (node.textContent !== words && !selected(node)) node.textContent = words;
  }
}

// inZone writes a time as clocks in a zone show it, with the distance to UTC;
// null for a zone that this browser does not know.
export function inZone(t, timeZone) {
  try {
    const words = t.toLocaleString(undefined, { timeZone, weekday: "short", day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
    const parts = new Intl.DateTimeFormat("en", { timeZone, timeZoneName: "longOffset" }).formatToParts(t);
    const offset = parts.find((p) => p.type === "timeZoneName").value.replace("GMT", "UTC").replace("+00:00", "");
    return { words, offset };
  } catch {
    return null;
  }
}
