// What the page asks of the server.

const KEY = "key"; // in sessionStorage: the API key is forgotten with the tab

export class KeyNeeded extends Error {}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

export async function health() {
  return await (await fetch("/health")).json();
}

// The events of an answer as they come. Raises KeyNeeded, or Error with what the server says.
export async function* answer(body, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true }), // a field that is undefined is not sent
    signal,
  });
  if (response.status === 401) sessionStorage.removeItem(KEY);
  if (!response.ok) {
    const { message } = (await response.json()).error;
    throw response.status === 401 ? new KeyNeeded(message) : new Error(message);
  }
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    yield event;
  }
}

// The JSON objects of a stream of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

// The fidelity of an answer, once the server has measured it; null where it does not within half a minute.
export async function fidelity(id, signal) {
  for (let wait = 300; wait < 12000; wait *= 1.6) {
    await new Promise((done) => setTimeout(done, wait));
    if (signal.aborted) return null;
    const response = await fetch("/v1/fidelity", { headers: headers() });
    if (!response.ok) return null;
    const found = (await response.json()).data.find((one) => one.id === id);
    if (found) return found.fidelity;
  }
  return null;
}
