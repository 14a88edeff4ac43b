// What failed, by job: how often, since when, whether it has recovered, and
// how the last run of it ended.

import { executionPath, get, jobPath, permitted, query } from "./api.js";
import { badge, el, heading, visible } from "./dom.js";
import { plain } from "./ansi.js";
import { may } from "./rights.js";
import { follow, hours, hoursField, startOf, stop } from "./search.js";
import { ago, parse } from "./time.js";

const linesShown = 3; // of an output

export const title = () => "Failures";
export const pace = 5_000;

// failures are those of the last hours, null for who may not see them.
export const failures = (last, limit, bytes) =>
  permitted(get("failures" + query({ start: startOf(last), limit, output_size_limit: bytes })), null);

export const load = ({ search }) => failures(hours(search), 100, 1_000);

export function show(rows, { search }) {
  return [
    heading("Failures by job"),
    el("form", { class: "filters", role: "search" }, hoursField(search)),
    rows === null ? el("p", { class: "quiet" }, "This token may not see that.")
      : rows.length ? el("div", { class: "panel" }, failureList(rows, hours(search))) : el("p", { class: "quiet", role: "status" }, "Nothing failed in that time."),
  ];
}

// failureList says of each job how often it failed, since when, and how it ended
// last: with all that is known, or in brief.
export function failureList(rows, last, brief = false) {
  return el("ul", { class: "plain failures" }, rows.map(({ job_name: name, count, since, failing, last_success: success, last: e }) => el("li", { "data-key": name },
    el("div", { class: "title" },
      el("div", null, el("a", { href: "#/" + jobPath(name) }, name), " ", failing ? badge("failing") : badge("recovered"), " ",
        el("span", { class: "quiet" },
          el("a", { href: "#/executions" + query({ job: name, outcome: "bad", hours: last }) }, count === 1 ? "once" : `${count.toLocaleString()} times`),
          count > 1 && [failing ? ", since " : ", first ", ago(parse(since))], !(brief && failing && count > 1) && [", last ", ago(parse(e.finished_at))],
          !brief && !failing && parse(success) > parse(e.finished_at) && [", succeeded ", ago(parse(success))])),
      !brief && may.run(name) && el("div", { class: "actions" }, again(e))),
    !brief && el("div", { class: "quiet" }, el("a", { href: `#/${executionPath(name, e.id)}` }, badge(e.outcome)), " on ", e.node_name, status(e) && ", " + status(e)),
    el("pre", { class: "line" }, ended(e, brief ? 1 : linesShown) || "It printed nothing."))));
}

// status is how the process of an execution ended.
export const status = (e) => (e.exit_code !== undefined ? `exit code ${e.exit_code}` : e.signal ? `signal ${e.signal}` : "");

// ended is why an execution failed, and the last lines that it printed, as plain text.
export function ended(e, lines = 1) {
  const printed = plain(e.output ?? "").replace(e.reason ?? "", "");
  return visible([e.reason, ...printed.split("\n").filter((l) => l.trim()).slice(-lines)].filter(Boolean).join("\n"));
}

// again is a button that runs the job of an execution, with what that was given.
export const again = (e) => el("button", { "data-action": "again", "data-job": e.job_name, "data-execution": e.id, "aria-label": `Run ${e.job_name} again, as in ${e.id}` }, "Run again");

export const typed = (event) => follow(event, "#/failures");
export const leave = stop;
export const actions = {};
