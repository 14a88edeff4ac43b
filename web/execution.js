// An execution and its output, as text: what there is, or as it comes.

import { connection, executionPath, file, get, jobPath, stream } from "./api.js";
import { painter } from "./ansi.js";
import { badge, el, heading, panel } from "./dom.js";
import { again, status } from "./failures.js";
import { may } from "./rights.js";
import { at, duration, parse, since } from "./time.js";
import { rest } from "./live.js";
import { causes, lasted } from "./job.js";

const shownMax = 500_000; // characters of an output that is followed

export const title = ({ names }) => `${names[0]}, a run`;

export async function load({ names: [job, id] }) {
  const { output, ...execution } = await get(executionPath(job, id));
  return execution;
}

export const concerns = (event, { names: [, id] }) => event.execution === id;

export function show(e, { names: [job, id] }) {
  const running = !e.outcome;
  return [
    el("p", { class: "crumbs" }, el("a", { href: "#/jobs" }, "Jobs"), " / ", el("a", { href: "#/" + jobPath(job) }, job), " / "),
    el("div", { class: "title" }, heading("Run of ", job),
      el("div", { class: "actions" },
        el("button", { "data-action": "download" }, "Download"),
        !running && may.run(job) && again({ ...e, job_name: job }),
        running && may.kill(job, id) && el("button", { "data-action": "kill", "data-job": job, "data-execution": id, class: "danger" }, "Kill"))),
    panel("Run", null, facts(e)),
    panel("Output", null,
      e.reason && el("p", { class: "error", id: "reason" }, e.reason, status(e) && !e.reason.includes(e.exit_code) && ` (${status(e)})`),
      e.output_dropped > 0 && el("p", { class: "quiet" }, `${e.output_dropped.toLocaleString()} bytes before this were not kept.`),
      el("pre", { id: "output", class: "output", "data-keep": true, "data-key": id, tabindex: "0", "aria-label": "Output" }),
      el("p", { class: "quiet", role: "status", "data-keep": true, id: "following" })),
  ];
}

function facts(e) {
  const rows = [
    ["Outcome", badge(e.outcome || "running")],
    ["Due", at(parse(e.scheduled_at))],
    ["Started", at(parse(e.started_at))],
    ["Ended", parse(e.finished_at) ? at(parse(e.finished_at)) : "–"],
    ["Took", e.outcome ? duration(lasted(e)) : since(parse(e.started_at))],
    ["Node", e.node_name],
    ["Why", causes[e.cause] ?? e.cause],
    ["Attempt", e.attempt],
    ["Exit code", e.exit_code?.toString()],
    ["Signal", e.signal],
    ["CPU time", e.cpu_seconds && `${e.cpu_seconds.toFixed(3)} s`],
    ["Peak memory", e.peak_memory_bytes && `${(e.peak_memory_bytes / 2 ** 20).toFixed(1)} MiB`],
  ];
  return el("dl", { class: "wide" }, rows.filter(([, v]) => v).map(([k, v]) => el("div", null, el("dt", null, k), el("dd", null, v))));
}

let following = null; // the controller of the stream that is read
let shown = {}; // in which element, of what beginning, how many characters

const nextTry = 2_000; // milliseconds between two tries to follow

// enter follows the output until the execution ends, from where it was left:
// neither a look at another tab nor a restart of the server begins it again.
export async function enter({ names: [job, id] }) {
  leave();
  const pre = document.getElementById("output");
  const note = document.getElementById("following");
  if (!pre) return;
  if (shown.pre !== pre) shown = { pre, head: "", length: 0, paint: painter() };
  const { signal } = following = new AbortController();
  for (let ended = shown.ended; !ended && !signal.aborted;) {
    note.textContent = "Following …";
    try {
      await stream(`${executionPath(job, id)}/output?follow`, signal, further());
      ended = shown.ended = (await get(executionPath(job, id))).outcome;
      if (ended) note.textContent = shown.length ? "That is all of it." : "It printed nothing.";
    } catch (err) {
      if (signal.aborted) return;
      if (!connection.since && err.status < 500) {
        note.textContent = `The output could not be read to its end: ${err.message}`;
        return;
      }
      note.textContent = "The server stopped answering; this may not be all. It goes on when the server does.";
    }
    if (!ended) await rest(nextTry, signal);
  }
}

export function leave() {
  following?.abort();
  following = null;
}

export const pause = leave;

// further returns what shows a stream, without what was shown before. A stream
// that begins elsewhere has lost its beginning: then all of it is shown.
function further() {
  let skip = shown.length;
  return (text) => {
    if (skip === shown.length && !text.startsWith(shown.head) && !shown.head.startsWith(text)) {
      shown.pre.textContent = shown.head = "";
      skip = shown.length = 0;
      shown.paint = painter();
    }
    shown.head ||= text.slice(0, 200);
    const more = text.slice(skip);
    skip = Math.max(0, skip - text.length);
    shown.length += more.length;
    append(shown.pre, shown.paint(more));
  };
}

// append keeps to the end where the reader is at the end.
function append(pre, nodes) {
  const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
  pre.append(...nodes);
  while (pre.childNodes.length > 1 && pre.textContent.length > shownMax) pre.firstChild.remove();
  if (atEnd) pre.scrollTop = pre.scrollHeight;
}

// download saves the output as the server has it now.
async function download(_, { names: [job, id] }) {
  const url = URL.createObjectURL(await file(`${executionPath(job, id)}/output`));
  el("a", { href: url, download: `${job}-${id}.txt` }).click();
  URL.revokeObjectURL(url);
}

export const actions = { download };
