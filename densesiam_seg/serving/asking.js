// Requests to the program that serves this page. Addresses are relative, so that each begins with its secret.

export class Refused extends Error {
  constructor(text, status) { super(text); this.status = status; }
}

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, { credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("densesiam-seg serve has ended; start it again and open its new address", 0);
  }
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({}));
  throw new Refused(told.error ?? `refused (${reply.status})`, reply.status);
}

// The clusters as they are now; null where nothing has changed since that version.
export async function state(since = "") {
  const reply = await ask(`state?since=${since}`);
  return reply.status === 204 ? null : reply.json();
}

export async function names(from) {
  return (await ask(`images?from=${from}`)).json();
}

// An edit; gives the clusters as they are then.
export async function edit(what, values) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(what, { method: "POST", headers, body: JSON.stringify(values) })).json();
}

// A value for each pixel: { width, height, values }.
export async function grid(path, signal) {
  const buffer = await (await ask(path, { signal })).arrayBuffer();
  const [height, width, bytes] = new Uint32Array(buffer, 0, 3);
  return { width, height, values: new (bytes === 1 ? Uint8Array : Uint16Array)(buffer, 12) };
}

// An image, or the reason why there is none.
export async function picture(path, signal) {
  return createImageBitmap(await (await ask(path, { signal })).blob());
}
