// The one place that writes to the document. Views describe what should be
// there with el and svg; render changes only what differs, so that focus,
// selection and scroll positions stay. Text becomes text nodes, never markup.

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === undefined || value === null) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

// roles are what the parts of a table are. A narrow screen shows them as blocks,
// which takes away what their names say to who listens.
const roles = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" };

const roleOf = (tag, attributes) => (tag === "th" ? (attributes?.scope === "row" ? "rowheader" : "columnheader") : roles[tag]);

// el makes an element. What happens on a click is said by data-action (see app.js).
export const el = (tag, attributes, ...children) => make(document.createElement(tag), { role: roleOf(tag, attributes), ...attributes }, children);

export const svg = (tag, attributes, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// render makes the children of target the given nodes.
export function render(target, ...nodes) {
  patchChildren(target, make(document.createDocumentFragment(), null, nodes));
}

// update renders a view that was read again by itself. A list that the reader
// uses keeps its rows where they are: see inUse. It returns what waits until
// then, in words, or nothing.
export function update(target, ...nodes) {
  waiting = { lists: [], fresh: 0, gone: 0 };
  holding = true;
  render(target, nodes);
  holding = false;
  const { lists, fresh, gone } = waiting;
  return lists.length > 0 && (fresh + gone ? `${fresh} new, ${gone} gone` : "in another order");
}

// released reports whether lists waited, and none of them is used any more.
export const released = () => waiting.lists.length > 0 && !waiting.lists.some(inUse);

let holding = false;
let waiting = { lists: [], fresh: 0, gone: 0 };

const idleAfter = 60_000; // milliseconds; a pointer that lies on a list that long uses it no more
let usedAt = 0;
for (const type of ["pointermove", "pointerdown", "keydown", "focusin"]) addEventListener(type, () => { usedAt = performance.now(); }, { passive: true });

// inUse: the pointer, the focus or a selection is in a part of the page. A button
// that was clicked with the pointer keeps the focus when the pointer has gone.
const inUse = (node) => performance.now() - usedAt < idleAfter && (node.matches(":hover") || node.querySelector(":focus-visible") || selected(node));

export function selected(node) {
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(node, true);
}

// identity tells nodes apart that must not become each other: by data-key, and
// a link or the button of a job by what it leads to or does.
const identity = ({ dataset: d, nodeName, href }) => d?.key ?? (nodeName === "A" ? href : d?.job && d.action + " " + d.job);

// patchChildren goes through both lists side by side. What has an identity
// becomes only what has the same, and moves with it.
function patchChildren(old, fresh) {
  const wanted = holding && isList(old) && inUse(old) ? inPlace(old, fresh) : [...fresh.childNodes];
  const coming = new Set(wanted.map(identity));
  const there = new Map();
  for (const node of [...old.childNodes]) {
    const id = identity(node);
    if (!id) continue;
    if (!coming.has(id) || there.has(id)) node.remove();
    else there.set(id, node);
  }
  let present = old.firstChild;
  for (const node of wanted) {
    const id = identity(node);
    const match = id ? there.get(id) : present && !identity(present) ? present : undefined;
    there.delete(id);
    if (match && match === present) present = present.nextSibling;
    else old.insertBefore(match ?? node, present);
    if (match) patch(match, node);
  }
  while (present) {
    const next = present.nextSibling;
    present.remove();
    present = next;
  }
}

// A list is what has nothing but elements with a key.
const isList = (node) => node.firstElementChild && [...node.children].every((child) => child.dataset.key);

// inPlace returns the rows of a list in the order that they have: what is gone
// stays, marked, and what is new is left out.
function inPlace(old, fresh) {
  const coming = new Map([...fresh.children].map((row) => [identity(row), row]));
  const wanted = [...old.children].map((row) => coming.get(identity(row)) ?? row);
  const gone = wanted.filter((row) => row.parentNode === old);
  gone.forEach((row) => row.classList.add("gone"));
  const news = coming.size - (wanted.length - gone.length);
  if (news || gone.length || wanted.some((row, i) => row !== fresh.children[i])) {
    waiting.lists.push(old);
    waiting.fresh += news;
    waiting.gone += gone.length;
  }
  return wanted;
}

function patch(old, fresh) {
  if (old === fresh) return;
  if (old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
  } else if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data && !selected(old)) old.data = fresh.data;
  } else {
    patchAttributes(old, fresh);
    if (!("keep" in fresh.dataset)) patchChildren(old, fresh);
  }
}

function patchAttributes(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    const theirs = name === "open" && old.nodeName === "DETAILS"; // the reader's choice
    if (!fresh.hasAttribute(name) && !theirs) old.removeAttribute(name);
  }
}

// visible shows control characters and marks of writing direction, which would
// hide or reorder what stands beside them.
export function visible(text) {
  return text
    .replace(/\r\n/g, "\n")
    .replace(/[\x00-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (c) => `⟨${c.charCodeAt(0).toString(16).padStart(4, "0")}⟩`);
}

const states = {
  success: ["good", "succeeded"], failed: ["bad", "failed"], partially_failed: ["bad", "partially failed"], running: ["busy", "running"],
  killed: ["odd", "killed"], interrupted: ["bad", "interrupted"], lost: ["bad", "lost"], untriggered: ["none", "never ran"],
  ran: ["good", "ran"], late: ["odd", "ran late"], skipped: ["odd", "skipped"], missed: ["bad", "missed"], disabled: ["none", "disabled"],
  failing: ["bad", "failing"], recovered: ["good", "recovered"],
};

// badge shows an outcome or a state: in words, and by its colour.
export function badge(state) {
  const [kind, words] = states[state] ?? ["none", state];
  return el("span", { class: "badge " + kind }, words);
}

// kind is the class of a state's colour.
export const kind = (state) => (states[state] ?? ["none"])[0];

// strip draws runs side by side, the oldest first: those that failed are the
// highest, so that it does not take colours to find them.
export function strip(runs) {
  const list = runs.toReversed().map((r) => r.outcome || "running");
  const bad = list.filter((state) => kind(state) === "bad").length;
  return svg("svg", { class: "strip", width: list.length * 8, height: 20, role: "img", "aria-label": `${bad} of the last ${list.length} runs failed` },
    list.map((state, i) => svg("rect", { x: i * 8, y: kind(state) === "bad" ? 0 : 5, width: 6, height: kind(state) === "bad" ? 20 : 15, rx: 1.5, class: kind(state) })));
}

// plural is a number with what is counted.
export const plural = (n, one, many = one + "s") => `${n.toLocaleString()} ${n === 1 ? one : many}`;

// menu holds what is not for a first click. It closes by itself: see app.js.
export const menu = (label, ...items) => items.some(Boolean) && el("details", { class: "menu" },
  el("summary", { class: "button", "aria-label": label, title: label }, "⋯"), el("div", { class: "menu-items" }, items));

// field is a label with what it labels.
export const field = (label, control, ...more) => el("label", { class: "field" }, el("span", null, label), control, ...more);

// choices is a select whose chosen value is value.
export function choices(attributes, value, options) {
  return el("select", attributes, options.map(([v, text]) => el("option", { value: v, selected: v === value }, text)));
}

export const heading = (...text) => el("h1", { tabindex: "-1" }, ...text);

export const panel = (title, attributes, ...children) =>
  el("section", { "aria-label": title, ...attributes, class: "panel " + (attributes?.class ?? "") }, el("h2", null, title), ...children);
