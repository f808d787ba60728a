// The server: reads, writes with the token, and the stream of states.
//
// The token comes in the address's fragment, which no server ever sees. It stays in this tab's session storage and
// leaves the address bar at once.

const KEY = "goldstream.token";
const SILENT_MS = 15_000; // the server speaks at least every five seconds; after three silences it counts as gone
const RETRY_MS = [500, 1000, 2000, 5000];

/** A call that failed: what happened, and what to do next. */
export class ApiError extends Error {
  constructor(/** @type {number} */ status, /** @type {string} */ message, next = "") {
    super(message);
    this.status = status; // 0: no server answered
    this.next = next;
  }
}

/** Takes the token out of the address, where one is. */
export function adoptToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  keepToken(given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** Keeps a token for this tab. */
export function keepToken(/** @type {string} */ token) {
  sessionStorage.setItem(KEY, token.trim());
}

/** Reads JSON. @returns {Promise<any>} */
export async function get(/** @type {string} */ path) {
  return answer(await call(path, { headers: headers() }));
}

/** Writes JSON and returns the answer; a 401 is answered once by `askToken`, which resolves to whether there is one now. */
export async function post(
  /** @type {string} */ path,
  /** @type {object} */ body,
  /** @type {(why: string) => Promise<boolean>} */ askToken,
) {
  for (;;) {
    const response = await call(path, {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (response.status !== 401) return answer(response);
    const refused = await refusal(response);
    if (!(await askToken(refused.message + (refused.next ? " " + refused.next : "")))) throw refused;
  }
}

/**
 * Follows the states until the page is left.
 * @param {{state: (state: any) => void, heard: () => void, lost: (error: ApiError) => void}} told
 */
export async function follow(told) {
  for (let failures = 0; ; failures += 1) {
    const watch = { control: new AbortController(), timer: 0 };
    const alive = () => {
      clearTimeout(watch.timer);
      watch.timer = window.setTimeout(() => watch.control.abort(), SILENT_MS);
    };
    try {
      alive();
      const response = await call("/api/events", { headers: headers(), signal: watch.control.signal });
      if (!response.ok || !response.body) throw await refusal(response);
      for await (const event of events(response.body, alive, told.heard)) {
        if (event.name === "state") {
          failures = 0;
          told.state(JSON.parse(event.data));
        }
      }
      throw new ApiError(0, "The server closed the connection.");
    } catch (error) {
      told.lost(error instanceof ApiError ? error : new ApiError(0, "The server fell silent."));
    } finally {
      clearTimeout(watch.timer);
      watch.control.abort();
    }
    await sleep(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
  }
}

async function* events(
  /** @type {ReadableStream<Uint8Array>} */ body,
  /** @type {() => void} */ alive,
  /** @type {() => void} */ heard,
) {
  const reader = body.getReader(),
    decoder = new TextDecoder();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    alive();
    heard();
    buffer += decoder.decode(value, { stream: true }).replaceAll("\r", "");
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop() ?? "";
    for (const block of blocks) {
      const fields = block.split("\n").filter((line) => !line.startsWith(":"));
      const of = (/** @type {string} */ name) =>
        fields
          .filter((line) => line.startsWith(name + ":"))
          .map((line) => line.slice(name.length + 1).replace(/^ /, ""));
      const data = of("data").join("\n");
      if (data) yield { name: of("event")[0] ?? "message", data };
    }
  }
}

async function call(/** @type {string} */ path, /** @type {RequestInit} */ init) {
  try {
    return await fetch(path, { cache: "no-store", credentials: "same-origin", ...init });
  } catch {
    throw new ApiError(0, "The dashboard's server does not answer.", "Start it again: goldstream dashboard");
  }
}

async function answer(/** @type {Response} */ response) {
  if (!response.ok) throw await refusal(response);
  return response.json();
}

async function refusal(/** @type {Response} */ response) {
  try {
    const { error, next, detail } = await response.json(); // detail: of what was understood, and refused
    return new ApiError(response.status, error ?? detail ?? `The server answered ${response.status}.`, next);
  } catch {
    return new ApiError(response.status, `The server answered ${response.status}.`);
  }
}

function headers() {
  const token = sessionStorage.getItem(KEY);
  return /** @type {Record<string, string>} */ (token ? { Authorization: `Bearer ${token}` } : {});
}

function sleep(/** @type {number} */ ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
