// What changes, as the server says it: a stream of lines that is opened again
// where it ends, breaks or falls silent. Until then the page asks by itself.

import { stream } from "./api.js";

const firstLine = 10_000; // milliseconds within which the stream greets; a proxy that collects answers lets nothing through
const silence = 40_000; // without a line; the server sends one every 15 seconds
const shortest = 1_000, longest = 60_000; // pauses between two tries

// live.open says whether changes come by themselves.
export const live = { open: false };

let current = null; // the controller of what is read

export function hush() {
  current?.abort();
  current = null;
  live.open = false;
}

// listen gives every event to heard until hush is called, and calls cut when
// the stream is gone. It never fails: what cannot be read is tried again.
export async function listen(heard, cut) {
  hush();
  const { signal } = current = new AbortController();
  let pause = shortest;
  while (!signal.aborted) {
    const greeted = await read(signal, heard);
    if (signal.aborted) return;
    live.open = false;
    if (greeted) cut();
    pause = greeted ? shortest : Math.min(2 * pause, longest);
    await rest(pause, signal);
  }
}

// read reads one stream to its end, and returns whether it brought anything.
async function read(signal, heard) {
  const quiet = new AbortController();
  let watch = setTimeout(() => quiet.abort(), firstLine);
  let partial = "";
  let greeted = false;
  try {
    await stream("events?limit=2", AbortSignal.any([signal, quiet.signal]), (text) => {
      clearTimeout(watch);
      watch = setTimeout(() => quiet.abort(), silence);
      const lines = (partial + text).split("\n");
      partial = lines.pop();
      for (const line of lines) {
        live.open = greeted = true;
        heard(JSON.parse(line));
      }
    });
  } catch {
    // It is refused, broken or silent. What else is read says what is wrong.
  }
  clearTimeout(watch);
  return greeted;
}

// rest waits, but not when signal has said to end.
export function rest(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
