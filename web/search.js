// Filters of a list that stand in the address.

import { query } from "./api.js";
import { choices, field } from "./dom.js";
import { now } from "./time.js";

const typingPause = 300; // milliseconds of quiet before a search is sent
const ranges = [["1", "the last hour"], ["24", "the last 24 hours"], ["168", "the last 7 days"], ["720", "the last 30 days"]];

// hours is the range that a view shows, and startOf when it begins.
export const hours = (search) => (ranges.some(([h]) => h === search.get("hours")) ? search.get("hours") : "24");
export const startOf = (last) => new Date(now() - last * 3_600_000).toISOString();
export const hoursField = (search) => field("Started in", choices({ name: "hours" }, hours(search), ranges));

export const address = (path, search, changes) => path + query({ ...Object.fromEntries(search), ...changes });

// follow puts what is typed into the address, when the typing pauses; page is
// what says which part of the list is shown, and is left out.
let typing = 0;
export function follow({ target: { form } }, path, page) {
  stop();
  if (!form?.matches(".filters")) return;
  typing = setTimeout(() => {
    const search = new URLSearchParams(location.hash.split("?")[1]);
    history.replaceState(history.state, "", address(path, search, { ...Object.fromEntries(new FormData(form)), ...(page && { [page]: "" }) }));
    dispatchEvent(new HashChangeEvent("hashchange"));
  }, typingPause);
}

export const stop = () => clearTimeout(typing);
