// The last and the next hour on one line for each job: what ran, coloured by
// how it ended, and what falls due, hollow. The server counts it in parts of
// these hours; where several fall into one part, a bar is as high as they are
// many, and those that failed stand on top.

import { el, panel, plural, svg } from "./dom.js";
import { absolute, parse } from "./time.js";

const title = "Last hour and next hour";
const rowsMax = 8;
const wide = 60, narrow = 20; // parts of an hour
const tall = 22; // pixels that a lane has for its bars

export const timelinePath = () => `timeline?limit=${rowsMax}&parts=${innerWidth < 800 ? narrow : wide}`;

const percent = (x) => x.toFixed(2) + "%";
const upright = (x, name) => svg("line", { x1: percent(x), x2: percent(x), y1: 0, y2: "100%", class: name });

// drawing places what happened between two times on a line.
function drawing({ start, now, end }) {
  const from = parse(start), length = parse(end) - from;
  return { now: parse(now), part: 50 / (innerWidth < 800 ? narrow : wide), place: (t) => Math.min(Math.max((t - from) / length, 0), 1) * 100 };
}

// words say what a mark stands for.
function words(m) {
  const good = m.count - (m.failed ?? 0) - (m.killed ?? 0) - (m.running ?? 0);
  const parts = [[m.failed, "failed"], [m.killed, "killed"], [m.running, "running"], [good, "succeeded"]].filter(([n]) => n);
  return (m.count === 1 ? parts[0][1] : parts.map(([n, what]) => `${n.toLocaleString()} ${what}`).join(", ")) + ` from ${absolute(parse(m.from))}`;
}

const kindOf = (m) => (m.failed ? "bad" : m.killed ? "odd" : m.running ? "busy" : "good");

function runMark(m, most, d) {
  const x = d.place(parse(m.from)), end = d.place(parse(m.to) ?? d.now);
  const title = svg("title", null, words(m));
  if (m.count === 1) return svg("line", { x1: percent(x), x2: percent(end + 0.01), y1: "50%", y2: "50%", class: "mark " + kindOf(m) }, title);
  const height = (n) => n && Math.max(4, tall * Math.sqrt(n / most)); // the least of many can be seen
  const whole = height(m.count), bad = Math.min(whole, height((m.failed ?? 0) + (m.killed ?? 0)));
  const bar = (y, h, kind) => h > 0 && svg("rect", { x: percent(x), width: percent(d.part * 0.8), y, height: h, class: kind });
  return svg("g", null, title, bar(tall - whole, bad, m.failed ? "bad" : "odd"), bar(tall - whole + bad, whole - bad, m.running ? "busy" : "good"));
}

function dueMark(m, most, d) {
  const x = percent(d.place(parse(m.due))), title = svg("title", null, `${m.count.toLocaleString()} due from ${absolute(parse(m.due))}`);
  if (m.count === 1) return svg("circle", { cx: x, cy: "50%", r: 3.5, class: "due" }, title);
  const height = Math.max(4, tall * Math.sqrt(m.count / most));
  return svg("rect", { x, width: percent(d.part * 0.7), y: tall - height, height, class: "due" }, title);
}

function lane({ job_name: name, runs, due }, d, known) {
  const most = Math.max(1, ...runs.map((m) => m.count), ...due.map((m) => m.count));
  return el("li", { "data-key": name },
    el("a", { href: `#/jobs/${encodeURIComponent(name)}`, title: name }, name),
    svg("svg", { class: "lane", "aria-hidden": "true" },
      known > 0 && svg("rect", { width: percent(known), height: "100%", class: "unknown" }, svg("title", null, "There are too many runs to count those before this.")),
      [0, 25, 75, 100].map((x) => upright(x, "grid")), upright(50, "now"),
      runs.map((m) => runMark(m, most, d)), due.map((m) => dueMark(m, most, d))));
}

// timeline also says in words, for who cannot see it, what the drawing shows.
export function timeline(t) {
  if (t.rows.length === 0) return panel(title, { class: "main" }, el("p", { class: "quiet" }, "Nothing ran, and nothing falls due."));
  const d = drawing(t), known = d.place(parse(t.known_from));
  const summary = `${known > 0 ? "More than " : ""}${plural(t.runs, "run")} of ${plural(t.jobs, "job")} in the last hour, ${t.failed.toLocaleString()} failed; ${plural(t.jobs_due, "job falls", "jobs fall")} due in the next.`;
  return panel(title, { class: "main" },
    el("ul", { class: "lanes" }, t.rows.map((r) => lane(r, d, known))),
    el("div", { class: "scale", "aria-hidden": "true" }, ["−60 min", "−30 min", "now", "+30 min", "+60 min"].map((text) => el("span", null, text))),
    el("p", { class: "legend quiet" },
      [["good", "succeeded"], ["bad", "failed"], ["odd", "killed"], ["busy", "running"], ["due", "due"]].map(([k, text]) => el("span", null, el("span", { class: "dot " + k }), text)),
      el("span", null, summary, Math.max(t.jobs, t.jobs_due) > t.rows.length && " Jobs that failed stand first, then the busiest.")));
}
