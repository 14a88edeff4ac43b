// The last and the next hour on one line for each job: what ran, coloured by
// how it ended, and what falls due, hollow. Marks that would lie on each other
// are folded into one that says how many it stands for.

import { el, kind, panel, svg } from "./dom.js";
import { absolute, now as serverNow, parse } from "./time.js";

const title = "Last hour and next hour";
const hour = 3_600_000;
const rowsMax = 8;
const markWidth = 11; // pixels
const worst = ["bad", "odd", "busy", "good", "none", "due"];

// rowsOf groups marks by job: those where something went wrong first, then the busiest.
function rowsOf(executions, coming) {
  const rows = new Map();
  const row = (name) => rows.get(name) ?? rows.set(name, { name, marks: [], bad: 0 }).get(name);
  for (const e of executions) {
    const state = e.outcome || "running", from = parse(e.started_at);
    row(e.job_name).marks.push({ from, to: parse(e.finished_at) ?? new Date(serverNow()), kind: kind(state), state });
    if (kind(state) === "bad") row(e.job_name).bad++;
  }
  for (const t of coming) row(t.job_name).marks.push({ from: new Date(t.due), to: new Date(t.due), kind: "due", state: "due" });
  return [...rows.values()].sort((a, b) => b.bad - a.bad || b.marks.length - a.marks.length || a.name.localeCompare(b.name));
}

const place = (t, now) => (Math.min(Math.max((t - now) / hour, -1), 1) + 1) * 50; // in percent

// foldWidth is the percentage of a line, roughly, that a mark takes. On a narrow
// screen the name stands above the line.
const foldWidth = () => markWidth / (innerWidth * (innerWidth < 800 ? 0.85 : 0.55)) * 100;

// fold joins marks of a row that lie too near to each other.
function fold(marks, now) {
  const width = foldWidth();
  const folded = [];
  for (const m of marks.toSorted((a, b) => a.from - b.from)) {
    const mark = { ...m, x: place(m.from, now), end: place(m.to, now), count: 1 };
    const last = folded.at(-1);
    if (last && mark.x - last.x < width && (mark.kind === "due") === (last.kind === "due")) join(last, mark);
    else folded.push(mark);
  }
  return folded;
}

function join(last, mark) {
  last.count++;
  last.end = Math.max(last.end, mark.end);
  if (worst.indexOf(mark.kind) < worst.indexOf(last.kind)) Object.assign(last, { kind: mark.kind, state: mark.state });
}

const percent = (x) => x.toFixed(2) + "%";

function drawMark(m) {
  const words = m.count > 1 ? `${m.count} from ${absolute(m.from)}` : absolute(m.from);
  const title = svg("title", null, `${m.state}: ${words}`);
  if (m.kind === "due") return svg("circle", { cx: percent(m.x), cy: "50%", r: 3.5, class: "due" }, title);
  return svg("line", { x1: percent(m.x), x2: percent(m.end + 0.01), y1: "50%", y2: "50%", class: "mark " + m.kind }, title);
}

// unknown shades what a list that was cut off says nothing of.
const unknown = (from, to) => to > from && svg("rect", { x: percent(from), width: percent(to - from), y: 0, height: "100%", class: "unknown" });

const upright = (x, name) => svg("line", { x1: percent(x), x2: percent(x), y1: 0, y2: "100%", class: name });

function lane({ name, marks }, now, known) {
  return el("li", { "data-key": name },
    el("a", { href: `#/jobs/${encodeURIComponent(name)}`, title: name }, name),
    svg("svg", { class: "lane", "aria-hidden": "true" },
      unknown(0, known.from), unknown(known.to, 100),
      [0, 25, 75, 100].map((x) => upright(x, "grid")), upright(50, "now"), fold(marks, now).map(drawMark)));
}

// knownRange is where in the drawing the lists reach: executions come newest
// first, ticks earliest first.
function knownRange(executions, coming, most, now) {
  return {
    from: executions.length < most ? 0 : place(parse(executions.at(-1).started_at), now),
    to: coming.length < most ? 100 : place(new Date(coming.at(-1).due), now),
  };
}

// many says how many rows a list stands for that ends at most.
const many = (list, most) => (list.length >= most ? "more than " : "") + list.length.toLocaleString();

// timeline also says in words, for who cannot see it, what the drawing shows.
export function timeline(executions, coming, most) {
  const now = serverNow();
  const all = rowsOf(executions, coming);
  if (all.length === 0) return panel(title, { class: "main" }, el("p", { class: "quiet" }, "Nothing ran, and nothing falls due."));
  const rows = all.slice(0, rowsMax);
  const failed = executions.filter((e) => kind(e.outcome || "running") === "bad").length;
  const summary = `${many(executions, most)} runs in the last hour, ${failed.toLocaleString()} of them failed; ${many(coming, most)} fall due in the next.`;
  const known = knownRange(executions, coming, most, now);
  const words = all.length > rows.length ? `${summary} ${rows.length} of ${all.length} jobs are shown, those that fail first.` : summary;
  return panel(title, { class: "main" },
    el("ul", { class: "lanes" }, rows.map((r) => lane(r, now, known))),
    el("div", { class: "scale", "aria-hidden": "true" }, ["−60 min", "−30 min", "now", "+30 min", "+60 min"].map((t) => el("span", null, t))),
    el("p", { class: "legend quiet" },
      [["good", "good"], ["bad", "failed"], ["odd", "killed"], ["busy", "running"], ["due", "due"]].map(([k, words]) => el("span", null, el("span", { class: "dot " + k }), words)),
      el("span", null, words)));
}
