// What is seen of a conversation: its messages, the buttons under them, and the layers of each answer.

import { siblings } from "./chats.js";
import { measuredSpeedUp, times } from "./dial.js";
import { make, Rendered } from "./markdown.js";

const at = (id) => document.getElementById(id);
const THOUGHT = /^\s*<think>([\s\S]*?)(?:<\/think>|$)/;

// A message with its buttons; `state` holds the chat, and whether an answer is going on.
export function message(chat, node) {
  const said = make("article", `said ${node.role === "user" ? "mine" : "answer"}`);
  said.dataset.node = node.id;
  if (node.role === "user") said.append(make("p", "text", node.content));
  else said.append(make("div", "text"), make("div", "about"));
  said.append(make("div", "actions"));
  if (node.role === "assistant") {
    said.rendered = new Rendered(said.querySelector(".text"));
    showText(said, node);
    showAbout(said, node);
  }
  showActions(said, chat, node);
  return said;
}

// A reasoning model's thoughts can be unfolded; they are no part of the text. The server parts them from it where the model's
// template marks them.
export function showText(said, { content, thought: parted }) {
  const thought = parted === undefined ? THOUGHT.exec(content) : ["", parted];
  if (thought) {
    let fold = said.querySelector(".thought");
    if (!fold) {
      fold = make("details", "thought", make("summary", "", "Thoughts"), make("p"));
      said.prepend(fold);
    }
    fold.lastChild.textContent = thought[1].trim();
  }
  said.rendered.update(thought ? content.slice(thought[0].length) : content);
}

export function showActions(said, chat, node) {
  const place = said.querySelector(".actions");
  const there = siblings(chat, node);
  place.replaceChildren();
  if (there.length > 1) {
    const number = there.indexOf(node);
    place.append(
      action("before", "‹", "The branch before", number === 0),
      make("span", "branch", `${number + 1} of ${there.length}`),
      action("after", "›", "The branch after", number === there.length - 1),
    );
  }
  if (node.role === "user") place.append(action("copy", "Copy"), action("edit", "Edit"));
  else place.append(action("copy", "Copy"), action("again", "Again", "Answer once more, on a branch beside this one"));
  if (node.role === "assistant" && node.layers?.skipped_layers.length)
    place.append(action("full", "Full model", "Answer once more with every layer, to compare text and speed"));
}

function action(name, text, title = "", disabled = false) {
  const button = make("button", "quiet", text);
  button.type = "button";
  button.dataset.action = name;
  button.disabled = disabled;
  if (title) button.title = title;
  if (text.length === 1) button.setAttribute("aria-label", title);
  return button;
}

// -- what an answer was ---------------------------------------------------------------------------------------------------

export function showAbout(said, node) {
  const place = said.querySelector(".about");
  place.replaceChildren();
  if (node.layers) place.append(picture(node.layers), lineOf(figures(node)), ...gained(node));
  if (node.cut) place.append(make("p", "figures", "cut off: the longest answer allowed, or the end of the context"));
  if (node.stopped) place.append(make("p", "figures", "stopped"));
  if (node.wrong) place.append(make("p", "wrong", node.wrong));
}

// One cell a layer: filled as high as its keep score, or empty where it was skipped.
function picture(layers) {
  const out = new Set(layers.skipped_layers);
  const row = make("div", "layers");
  row.setAttribute("role", "img");
  const names = out.size ? `; skipped: ${[...out].join(", ")}` : "";
  row.setAttribute("aria-label", `${layers.n_layer - out.size} of ${layers.n_layer} layers computed${names}`);
  for (let layer = 0; layer < layers.n_layer; layer += 1) {
    const cell = make("span", out.has(layer) ? "out" : "");
    const keep = layers.keep?.[layer];
    cell.title = `layer ${layer}: ${out.has(layer) ? "skipped" : "computed"}`;
    if (keep !== undefined) {
      cell.title += `, keep score ${keep.toFixed(2)}`;
      cell.style.setProperty("--keep", Math.max(keep, 0.08));
    }
    row.append(cell);
  }
  return row;
}

function figures({ layers, tokens }) {
  const count = layers.tokens ?? tokens;
  const rate = layers.tpot_ms ? [`${(1000 / layers.tpot_ms).toFixed(1)} tokens/s`] : [];
  return [
    `${count} ${count === 1 ? "token" : "tokens"}`,
    ...rate,
    `TTFT ${Math.round(layers.ttft_ms)} ms`,
    `${layers.n_layer - layers.skipped_layers.length} of ${layers.n_layer} layers`,
  ];
}

// Figures in a line that breaks between them.
function lineOf(parts, kind = "figures") {
  return make("p", kind, ...parts.flatMap((part, i) => [...(i ? [" · "] : []), make("span", "", part)]));
}

// What skipping gained, expected and measured, and what it cost.
function gained({ layers, fidelity }) {
  const skipped = layers.skipped_layers.length;
  if (!skipped) return [];
  const measured = measuredSpeedUp(skipped);
  const parts = [
    ...(layers.expected_speedup ? [`speed-up ${times(layers.expected_speedup)} expected`] : []),
    ...(measured ? [`${times(measured)} measured`] : []),
    ...(typeof fidelity === "number" ? [`fidelity ${Math.round(100 * fidelity)} %`] : []),
    ...change(layers),
  ];
  const line = lineOf(parts, "figures gained");
  line.title =
    "Speed over the full model: expected by the bytes that a token reads, measured by this browser's answers from the full model. " +
    "Fidelity: the share of tokens that are the full model's first choice.";
  return parts.length ? [line] : [];
}

// What skipping is expected to change, where the model has cost probes.
function change(layers) {
  if (layers.expected_change === null || layers.expected_change === undefined) return [];
  const number = Math.round(100 * layers.expected_change);
  return [`${number ? `about ${number}` : "fewer than 1"} in 100 words changed (predicted cost ${layers.predicted_cost.toFixed(3)})`];
}

// -- the list of conversations ----------------------------------------------------------------------------------------------

export function chatList(chats, current) {
  return chats.map((chat) => {
    const open = make("button", "quiet open", chat.title || "New chat");
    open.type = "button";
    open.dataset.open = chat.id;
    if (chat.id === current.id) open.setAttribute("aria-current", "true");
    const remove = make("button", "quiet remove", "×");
    remove.type = "button";
    remove.dataset.remove = chat.id;
    remove.title = `Delete "${chat.title}"`;
    remove.setAttribute("aria-label", remove.title);
    return make("li", "", open, remove);
  });
}

// -- the window -----------------------------------------------------------------------------------------------------------

// Changes the log and stays at its end, where the reader is there.
export function follow(change, always = false) {
  const view = at("scroll");
  const there = always || view.scrollHeight - view.scrollTop - view.clientHeight < 60;
  change();
  if (there) view.scrollTop = view.scrollHeight;
}

// navigator.clipboard is there on localhost and over https alone.
export async function copy(text, button) {
  const words = button?.textContent;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
  } catch {
    copyBySelection(text);
  }
  if (!button) return;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = words), 1500);
}

function copyBySelection(text) {
  const area = make("textarea", "hidden");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
