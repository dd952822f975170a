// The chat page: one conversation, streamed from /v1/chat/completions. Text of the model is only ever set as text.
"use strict";

const at = (id) => document.getElementById(id);
const messages = [];
let server = null; // the answer of /health
let skip; // undefined: what the server does by default
let running = null; // the AbortController of the answer going on

// -- what the server is ---------------------------------------------------------------------------------------------

async function start() {
  try {
    server = await (await fetch("/health")).json();
  } catch {
    return report("The server cannot be reached.");
  }
  at("model").textContent = server.model;
  document.title = `${server.model} - first_cpp`;
  if (server.key && !sessionStorage.getItem("key")) askForKey();
  setUpDial();
}

function setUpDial() {
  const most = Math.floor(server.max_skip * server.n_layer + 1e-6);
  at("dial").disabled = most === 0;
  at("count").max = most;
  at("count").value = typeof server.skip === "number" ? Math.round(server.skip * server.n_layer) : 0;
  at("auto").checked = server.skip === "auto" && most > 0;
  showDial();
}

function turnDial(event) {
  if (event.target === at("count")) at("auto").checked = false;
  skip = at("auto").checked ? "auto" : Number(at("count").value) / server.n_layer;
  showDial();
}

function showDial() {
  const count = Number(at("count").value);
  let text = `${count} of ${server.n_layer} layers skipped`;
  if (at("auto").checked) text = server.tolerance === null ? "the model's own share" : "as many as each prompt can spare";
  else if (at("dial").disabled) text = "no routers: every layer is computed";
  if (skip === undefined && Array.isArray(server.skip)) text = `layers ${server.skip.join(", ")} skipped`;
  at("dialText").textContent = text;
  at("count").classList.toggle("unused", at("auto").checked);
}

function askForKey() {
  at("keyForm").hidden = false;
  at("key").focus();
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value);
  at("key").value = "";
  at("keyForm").hidden = true;
  at("text").focus();
}

// -- a question and its answer ----------------------------------------------------------------------------------------

async function ask(event) {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || running) return;
  at("text").value = "";
  fit();
  const question = add("mine", text);
  const answer = add("answer", "");
  messages.push({ role: "user", content: text });
  setRunning(new AbortController());
  answer.setAttribute("aria-busy", "true");
  try {
    const made = await stream(answer.querySelector(".text"));
    if (made.layers) answer.append(...picture(made));
    report(`The answer is complete, ${made.tokens} tokens.`);
  } catch (error) {
    fail(error, question, answer, text);
  } finally {
    answer.removeAttribute("aria-busy");
    const said = answer.querySelector(".text").textContent;
    if (said) messages.push({ role: "assistant", content: said });
    else messages.pop();
    setRunning(null);
  }
}

// Shows the answer as it comes. Returns its number of tokens and its field `first_cpp`.
async function stream(place) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const body = JSON.stringify({ model: server.model, messages, stream: true, skip }); // no skip where it is undefined
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body, signal: running.signal });
  if (response.status === 401) {
    sessionStorage.removeItem("key");
    askForKey();
  }
  if (!response.ok) throw new Error((await response.json()).error.message);
  const made = { tokens: 0, layers: null };
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const said = event.choices[0].delta.content;
    if (said) {
      made.tokens += 1;
      show(() => place.append(said));
    }
    made.layers = event.first_cpp ?? made.layers;
  }
  return made;
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

function fail(error, question, answer, text) {
  if (error.name === "AbortError") {
    if (answer.querySelector(".text").textContent) answer.append(paragraph("figures", "stopped"));
    else answer.remove();
    return report("Stopped.");
  }
  const said = error.name === "TypeError" ? "The server cannot be reached." : error.message;
  answer.append(paragraph("wrong", said));
  report(said);
  if (answer.querySelector(".text").textContent) return;
  question.remove(); // it was not answered: here it is again, to be changed or sent once more
  if (!at("text").value) at("text").value = text;
  fit();
}

function setRunning(controller) {
  running = controller;
  at("send").hidden = controller !== null;
  at("stop").hidden = controller === null;
  if (controller === null) at("text").focus();
}

function stop() {
  running?.abort();
}

function newChat() {
  stop();
  messages.length = 0;
  at("log").replaceChildren();
  at("empty").hidden = false;
  at("text").focus();
}

// -- what is seen -----------------------------------------------------------------------------------------------------

function add(kind, text) {
  const said = document.createElement("div");
  said.className = `said ${kind}`;
  said.append(paragraph("text", text));
  at("empty").hidden = true;
  show(() => at("log").append(said), kind === "mine");
  return said;
}

function paragraph(kind, text) {
  const element = document.createElement("p");
  element.className = kind;
  element.textContent = text;
  return element;
}

// One cell a layer: filled as high as its keep score, or empty where it was skipped.
function picture({ tokens, layers }) {
  const out = new Set(layers.skipped_layers);
  const row = document.createElement("div");
  row.className = "layers";
  row.setAttribute("role", "img");
  const computed = layers.n_layer - out.size;
  const names = out.size ? `; skipped: ${[...out].join(", ")}` : "";
  row.setAttribute("aria-label", `${computed} of ${layers.n_layer} layers computed${names}`);
  for (let layer = 0; layer < layers.n_layer; layer++) {
    const cell = document.createElement("span");
    const keep = layers.keep?.[layer];
    cell.classList.toggle("out", out.has(layer));
    cell.title = `layer ${layer}: ${out.has(layer) ? "skipped" : "computed"}`;
    if (keep !== undefined) {
      cell.title += `, keep score ${keep.toFixed(2)}`;
      cell.style.setProperty("--keep", Math.max(keep, 0.08));
    }
    row.append(cell);
  }
  const rate = layers.tpot_ms ? `${(1000 / layers.tpot_ms).toFixed(1)} tokens/s, ` : "";
  const figures = `${tokens} tokens, ${rate}TTFT ${Math.round(layers.ttft_ms)} ms, ${computed} of ${layers.n_layer} layers`;
  return [row, paragraph("figures", `${figures}${change(layers)}`)];
}

// What skipping is expected to change, where the model has cost probes.
function change(layers) {
  if (layers.expected_change === null || layers.expected_change === undefined || !layers.skipped_layers.length) return "";
  const number = Math.round(100 * layers.expected_change);
  const words = number ? `about ${number}` : "fewer than 1";
  return `, ${words} in 100 words changed (predicted cost ${layers.predicted_cost.toFixed(3)})`;
}

// Changes the log and stays at its end, where the reader is there.
function show(change, always = false) {
  const view = at("scroll");
  const follow = always || view.scrollHeight - view.scrollTop - view.clientHeight < 60;
  change();
  if (follow) view.scrollTop = view.scrollHeight;
}

function report(text) {
  at("status").textContent = text;
}

function fit() {
  at("text").style.height = "auto";
  at("text").style.height = `${at("text").scrollHeight + 2}px`;
}

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", newChat);
at("keyForm").addEventListener("submit", useKey);
at("dial").addEventListener("input", turnDial);
at("text").addEventListener("input", fit);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
start();
