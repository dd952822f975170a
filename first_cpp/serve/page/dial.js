// The dial: how many layers answers skip, in words and as a speed.

import { readSetting, saveSetting } from "./chats.js";

const KEPT = 15; // measured answers that are kept by number of layers
const ENOUGH = 16; // tokens of an answer whose speed says something
const at = (id) => document.getElementById(id);

let server = null;
let skip; // undefined: what the server does by default

export function setUpDial(found) {
  server = found;
  skip = undefined;
  const most = mostLayers();
  at("dial").disabled = most === 0;
  at("count").max = most;
  at("count").value = typeof server.skip === "number" ? Math.round(server.skip * server.n_layer) : 0;
  at("auto").checked = server.skip === "auto" && most > 0;
  at("help").hidden = most > 0;
  at("help").replaceChildren(...help());
  show();
}

// There is nothing to turn yet, and `why`.
export function leaveDial(why) {
  skip = undefined;
  at("dial").disabled = true;
  at("help").hidden = false;
  at("help").replaceChildren(why);
}

function mostLayers() {
  return Math.floor(server.max_skip * server.n_layer + 1e-6);
}

// Why the dial cannot be turned, and what to do.
function help() {
  if (server.routers) return ["This server lets no answer skip layers: it was started with ", code("--max-skip 0"), "."];
  const fixed = Array.isArray(server.skip) ? `Layers ${server.skip.join(", ")} are skipped in every answer.` : "Every layer is computed.";
  return [
    `This model has no routers to turn the dial with. ${fixed} To find the layers that it can spare, run `,
    code("first-cpp calibrate -m model.gguf --out model-first.gguf"),
    " and serve the new file.",
  ];
}

function code(text) {
  const made = document.createElement("code");
  made.textContent = text;
  return made;
}

// What a request asks for; undefined where the dial was not touched.
export function chosenSkip() {
  return skip;
}

function turn(event) {
  if (event.target === at("count")) at("auto").checked = false;
  skip = at("auto").checked ? "auto" : Number(at("count").value) / server.n_layer;
  show();
}

function show() {
  const auto = at("auto").checked;
  const text = auto ? autoWords() : words(Number(at("count").value));
  at("dialText").textContent = text;
  at("count").setAttribute("aria-valuetext", text);
  at("count").classList.toggle("unused", auto);
}

function autoWords() {
  return server.tolerance === null ? "the model's own share" : "as many layers as each prompt can spare";
}

function words(count) {
  if (skip === undefined && Array.isArray(server.skip)) return `layers ${server.skip.join(", ")} skipped`;
  if (count === 0) return "full model: every layer";
  const fastest = count === mostLayers() ? "fastest: " : "";
  const measured = measuredSpeedUp(count);
  const speed = measured ? `, measured ${times(measured)}` : expected(count);
  return `${fastest}${count} of ${server.n_layer} layers skipped${speed}`;
}

function expected(count) {
  const share = server.bytes_in_layers;
  return typeof share === "number" ? `, about ${times(1 / (1 - (share * count) / server.n_layer))}` : "";
}

export function times(value) {
  return `${value.toFixed(2)}x`;
}

// -- measured speed -------------------------------------------------------------------------------------------------------

function speeds() {
  if (!server) return {};
  const found = readSetting(`speed/${server.model}`, {});
  return found && typeof found === "object" ? found : {};
}

// Keeps the time per token of an answer, by the number of layers that it skipped.
export function noteSpeed({ tokens, tpot_ms: tpot, skipped_layers: skipped }) {
  if (!(tokens >= ENOUGH && tpot)) return;
  const all = speeds();
  all[skipped.length] = [...(Array.isArray(all[skipped.length]) ? all[skipped.length] : []), tpot].slice(-KEPT);
  saveSetting(`speed/${server.model}`, all);
  show();
}

// How much faster than the full model such answers were in this browser; null while either was not measured.
export function measuredSpeedUp(count) {
  const all = speeds();
  return count && all[0]?.length && all[count]?.length ? median(all[0]) / median(all[count]) : null;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

at("dial").addEventListener("input", turn);
