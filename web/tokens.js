// Tokens, for who may see and make them. A secret is shown once.

import { get, permitted, write } from "./api.js";
import { choices, el, field, heading, panel } from "./dom.js";
import { may } from "./rights.js";
import { at, parse } from "./time.js";

export const title = () => "Tokens";
export const pace = 10_000;
export const concerns = () => false;

let made = null; // the token that was just made, with its secret

export async function load() {
  const [tokens, policies] = await Promise.all([get("acl/tokens"), permitted(get("acl/policies"), [])]);
  return { tokens, policies };
}

export function show({ tokens, policies }) {
  return [
    heading("Tokens"),
    may.createToken() && panel("New token", null, newToken(policies),
      made && el("div", { role: "status", class: "secret" }, el("p", null, `The secret of ${made.Name}, which nobody can show again:`), el("code", { tabindex: "0", "aria-label": "Secret" }, made.SecretID))),
    el("table", { class: "list" },
      el("thead", null, el("tr", null, ["Name", "Type", "Policies", "Created", "Expires", "Accessor"].map((h) => el("th", null, h)), el("th", null, el("span", { class: "unseen" }, "Actions")))),
      el("tbody", null, tokens.map(row))),
  ];
}

function newToken(policies) {
  return el("form", { class: "filters", id: "new-token", "data-keep": true, "data-key": "new-token" },
    field("Name", el("input", { name: "Name", required: true, autocomplete: "off" })),
    field("May do", choices({ name: "Policies" }, "viewer", [...policies.map((p) => [p.Name, `what ${p.Name} allows`]), ["", "everything (management)"]])),
    field("Valid for", choices({ name: "ExpirationTTL" }, "2160h", [["24h", "a day"], ["720h", "30 days"], ["2160h", "90 days"], ["8760h", "a year"], ["", "ever"]])),
    el("button", { class: "primary", "data-action": "create" }, "Create"));
}

function row(t) {
  return el("tr", { "data-key": t.AccessorID },
    el("th", { scope: "row", "data-label": "Name" }, t.Name || "–"),
    el("td", { "data-label": "Type" }, t.Type),
    el("td", { "data-label": "Policies" }, (t.Policies ?? []).join(", ") || "everything"),
    el("td", { "data-label": "Created" }, parse(t.CreateTime) ? at(parse(t.CreateTime)) : "–"),
    el("td", { "data-label": "Expires" }, parse(t.ExpirationTime) ? at(parse(t.ExpirationTime)) : "never"),
    el("td", { "data-label": "Accessor" }, el("code", null, t.AccessorID)),
    el("td", null, may.deleteToken() && el("button", { class: "danger", "data-action": "revoke", "data-accessor": t.AccessorID, "data-name": t.Name, "aria-label": `Delete the token ${t.Name}` }, "Delete")));
}

async function create() {
  const form = document.getElementById("new-token");
  if (!form.reportValidity()) return undefined;
  const { Name, Policies, ExpirationTTL } = Object.fromEntries(new FormData(form));
  made = await write("POST", "acl/tokens", { Name, ExpirationTTL, ...(Policies ? { Type: "client", Policies: [Policies] } : { Type: "management" }) });
  form.reset();
  return `The token ${Name} was made.`;
}

export const leave = () => { made = null; };
export const actions = { create };
