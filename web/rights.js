// What the viewer's token may do, so that nothing is offered that the server
// would refuse. The server decides; this only spares who may not the question.

import { executionPath, get, jobPath, token } from "./api.js";

let rules = null; // what the token grants; null: everything
let controlled = false; // there is access control

// learn asks the server what the token may do. Who has none is let in only
// where there is no access control, and there everybody may do everything.
export async function learn() {
  let self = null;
  try {
    if (token.get()) self = await get("acl/self");
  } catch (err) {
    if (err.status !== 409) throw err; // access control is off
  }
  controlled = self !== null;
  rules = self?.Type === "client" ? self.Rules : null;
}

// matches reports whether a path of a policy means a path: "*" stands for
// anything but a slash, "**", at its end, for any rest. The server's rule is
// matchPath; testdata/acl/globs.txt holds both to one table.
function matches(glob, path) {
  const pattern = glob.replace(/[.+^$()|]/g, "\\$&").replace(/\*\*$/, "\n").replace(/\*/g, "[^/]*").replace("\n", ".*");
  return new RegExp(`^${pattern}$`, "s").test(path);
}

function granted(path, capability) {
  return rules === null || rules.some((r) => Object.entries(r.path ?? {}).some(([glob, { capabilities }]) => capabilities?.includes(capability) && matches(glob, "/v1/" + path)));
}

const stores = (path) => granted("jobs", "create") || granted("jobs", "update") || granted(path, "update");

// may says whether the viewer may do something: to a job, or to the cluster.
export const may = {
  seeAll: () => granted(jobPath(" ") + "/executions", "list"), // no name has a space: only what means every job means this
  create: () => granted("jobs", "create") || granted("jobs", "update"),
  edit: (job) => stores(jobPath(job)),
  run: (job) => granted(jobPath(job), "create"),
  toggle: (job) => granted(jobPath(job) + "/toggle", "create"),
  delete: (job) => granted(jobPath(job), "delete"),
  kill: (job, id) => granted(executionPath(job, id) + "/kill", "create"),
  unpause: () => granted("unpause", "create"),
  release: () => granted("release", "create"),
  hold: () => granted("hold", "create"),
  drain: (node) => granted(`members/${encodeURIComponent(node)}/drain`, "create"),
  audit: () => granted("audit", "list"),
  tokens: () => controlled && granted("acl/tokens", "list"),
  createToken: () => granted("acl/tokens", "create"),
  deleteToken: () => granted("acl/tokens/any", "delete"),
};
