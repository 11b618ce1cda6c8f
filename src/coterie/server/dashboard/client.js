// Asks the server that this page came from, with the key of this tab if there is one.

const KEPT = "coterie-key";

export class Refused extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEPT),
  set: (value) => sessionStorage.setItem(KEPT, value),
  forget: () => sessionStorage.removeItem(KEPT),
};

/** The response, once it has begun. Throws Refused for anything but success. */
export async function ask(path, { body = null, signal = null } = {}) {
  const headers = {};
  if (body !== null) headers["Content-Type"] = "application/json";
  if (key.get() !== null) headers.Authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, {
    method: body === null ? "GET" : "POST",
    body: body === null ? null : JSON.stringify(body),
    headers,
    signal,
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  });
  if (response.ok) return response;
  let said = null;
  try {
    said = (await response.json()).error;
  } catch {
    // It has no words of ours.
  }
  throw new Refused(response.status, said?.message ?? `The server answered with status ${response.status}.`, said?.code);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** The data of server-sent events, as JSON; ends with the stream. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((one) => one.startsWith("data: ")).map((one) => one.slice(6)).join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
