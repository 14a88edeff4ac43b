// The one place that talks to the server, and that knows whether it answers.

import { now, setClock } from "./time.js";

const patience = 10_000; // milliseconds that an answer may take

// since is when the server last answered before it stopped, null while it does.
export const connection = { since: null, why: "", answered: new Date(now()) };

// spent is how many requests were answered, and with how many bytes.
export const spent = { requests: 0, bytes: 0 };

// Refused is an answer that says no, in a sentence for people.
export class Refused extends Error {
  constructor(status, message) {
    super(message || (status === 404 ? "That does not exist (any more)." : `The server answered ${status}.`));
    this.status = status;
  }
}

// token is the viewer's, for servers that ask for one. It is forgotten with the tab.
export const token = {
  get: () => sessionStorage.getItem("token") ?? "",
  set: (value) => (value ? sessionStorage.setItem("token", value) : sessionStorage.removeItem("token")),
};

const withToken = (headers) => (token.get() ? { ...headers, Authorization: "Bearer " + token.get() } : headers);

function lost(why) {
  connection.since ??= connection.answered;
  connection.why = why;
}

function found() {
  connection.since = null;
  connection.answered = new Date(now());
}

// send does one request. URLs are relative, so that a path prefix works.
// Errors are Refused, or those of fetch where nothing answers.
async function send(method, path, options = {}) {
  const asked = Date.now();
  let answer;
  try {
    answer = await fetch("v1/" + path, { method, signal: AbortSignal.timeout(patience), ...options, headers: withToken(options.headers) });
  } catch (err) {
    if (err.name !== "AbortError") lost("");
    throw err;
  }
  if (answer.status === 502 || answer.status === 504) lost(`a proxy answers ${answer.status}`);
  else found();
  setClock(answer.headers.get("Date"), asked);
  spent.requests++;
  spent.bytes += Number(answer.headers.get("Content-Length"));
  if (!answer.ok) throw new Refused(answer.status, await answer.text());
  return answer;
}

export async function get(path) {
  return (await send("GET", path)).json();
}

// read returns what there is, its revision, and what the server warns of with it.
export const read = async (path) => whole(await send("GET", path));

const whole = async (answer) => ({ doc: await answer.json(), rev: answer.headers.get("Belfry-Rev"), warning: answer.headers.get("Belfry-Warning") });

// permitted waits for an answer, and returns instead where the token does not
// get one: a view shows what its viewer may see.
export async function permitted(answer, instead) {
  try {
    return await answer;
  } catch (err) {
    if (err.status === 403) return instead;
    throw err;
  }
}

// list returns rows and the number of all of them.
export async function list(path) {
  const answer = await send("GET", path);
  return { rows: await answer.json(), total: Number(answer.headers.get("X-Total-Count")) };
}

export async function write(method, path, body, headers) {
  const options = { headers: { ...headers, "Idempotency-Key": crypto.getRandomValues(new Uint32Array(4)).join("-") } };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  return (await send(method, path, options)).json();
}

// stream gives text to onText as it comes, until it ends or signal says so.
export async function stream(path, signal, onText) {
  const answer = await send("GET", path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    found();
    onText(value);
  }
}

// file returns an answer as it is. A link could not carry the token.
export async function file(path) {
  return (await send("GET", path)).blob();
}

// query writes what is set of an object as a query.
export function query(fields) {
  const set = Object.entries(fields).filter(([, v]) => v !== "" && v !== undefined && v !== null);
  return set.length ? "?" + new URLSearchParams(set) : "";
}

export const jobPath = (name) => "jobs/" + encodeURIComponent(name);
export const executionPath = (job, id) => `${jobPath(job)}/executions/${encodeURIComponent(id)}`;
