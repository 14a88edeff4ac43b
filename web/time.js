// Times and durations, as people read them: in the zone of the viewer, with
// UTC on hover.

import { el } from "./dom.js";

const second = 1000, minute = 60 * second, hour = 60 * minute, day = 24 * hour;

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

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
  return `${Math.floor(ms / second)} s`;
}

function relative(ms) {
  if (Math.abs(ms) < second) return "now";
  return ms > 0 ? "in " + brief(ms) : brief(-ms) + " ago";
}

const utc = (t) => t.toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");

const sameDay = (a, b) => a.toDateString() === b.toDateString();

// absolute leaves out today's date.
export function absolute(t) {
  return (sameDay(t, new Date()) ? clock : full).format(t);
}

// at shows a time as it is, ago also how far it is from now.
export function at(t) {
  return el("time", { datetime: t.toISOString(), title: utc(t) }, absolute(t));
}

export function ago(t) {
  return el("time", { datetime: t.toISOString(), title: utc(t), class: "ago" },
    el("span", null, relative(t - Date.now())), " ", el("small", null, absolute(t)));
}
