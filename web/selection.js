// Rows that are chosen in a list, and what can be done to all of them. They
// stay chosen while the list is read again, and for as long as it is open.

import { el, plural } from "./dom.js";

const chosen = new Set();
let offered = []; // keys of the rows that are shown
let words = []; // what a row is, one and many

// box is the cell that chooses a row.
export const box = (key, name) =>
  el("td", { class: "pick" }, el("input", { type: "checkbox", "data-pick": key, checked: chosen.has(key), "aria-label": `Select ${name}` }));

// headBox chooses all rows, or none.
export const headBox = () => el("th", { class: "pick" }, el("input", { type: "checkbox", "data-pick": "*", "aria-label": "Select all" }));

// bar has what can be done to the chosen rows: pairs of a verb and its words.
export function bar(keys, verbs, one, many) {
  offered = keys;
  words = [one, many];
  for (const key of [...chosen]) if (!keys.includes(key)) chosen.delete(key);
  return verbs.length > 0 && keys.length > 0 && el("div", { class: "actions bulk", role: "group", "aria-label": "With the selected" },
    el("span", { id: "picked", role: "status", class: "quiet" }, picked()),
    verbs.map(([verb, text]) => el("button", { "data-action": "selected", "data-verb": verb, disabled: chosen.size === 0 }, text)));
}

const picked = () => (chosen.size ? `${plural(chosen.size, ...words)} selected` : "None selected");

// pick takes a click on a box, and returns whether it was one.
export function pick({ dataset, checked }) {
  if (!dataset.pick) return false;
  for (const key of dataset.pick === "*" ? offered : [dataset.pick]) {
    if (checked) chosen.add(key);
    else chosen.delete(key);
  }
  shown();
  return true;
}

// shown has the page say what is chosen now.
function shown() {
  for (const box of document.querySelectorAll("[data-pick]")) {
    box.checked = box.dataset.pick === "*" ? chosen.size > 0 && offered.every((key) => chosen.has(key)) : chosen.has(box.dataset.pick);
  }
  for (const button of document.querySelectorAll(".bulk button")) button.disabled = chosen.size === 0;
  document.getElementById("picked").textContent = picked();
}

export const forget = () => chosen.clear();

// how says how many are chosen.
export const how = () => plural(chosen.size, ...words);

export const keys = () => [...chosen];

// each does something to one row after the other, and says what came of it.
// Rows where it was done are chosen no more.
export async function each(keys, act, done) {
  let count = 0;
  const refused = [];
  for (const key of keys) {
    try {
      await act(key);
      chosen.delete(key);
      count++;
    } catch (err) {
      if (!err.status) throw err;
      refused.push(`${key.split("/")[0]}: ${err.message}`);
    }
  }
  const said = `${plural(count, ...words)} ${count === 1 ? "was" : "were"} ${done}.`;
  shown();
  if (refused.length) throw new Error(`${said} ${plural(refused.length, "was", "were")} refused. ${refused[0]}`);
  return said;
}
