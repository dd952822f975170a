// The chat page: conversations kept in the browser, answers streamed from the server.

import { addNode, chooseBranch, dropNode, newChat, pathTo, siblings } from "./chats.js";
import { allChats, keyOf, readChat, readSetting, removeChat, saveChat, saveSetting } from "./chats.js";
import { chosenSkip, noteSpeed } from "./dial.js";
import { answered, askedModel, meetServer } from "./models.js";
import { answer, fidelity, hasKey, KeyNeeded, useKey } from "./server.js";
import { chatList, copy, follow, message, showAbout, showActions, showText } from "./view.js";

const at = (id) => document.getElementById(id);
const touch = matchMedia("(pointer: coarse)"); // a focused box brings the keyboard up, over the answer
const narrow = matchMedia("(max-width: 62rem)"); // as in style.css: the conversations lie over the page
const settings = { system: "", temperature: null, max_tokens: null, ...readSetting("settings", {}) };
let chat = newChat();
let running = null; // the answer going on: {chat, node, controller}
let editing = null; // the node that the text in the box takes the place of
let measuring = new AbortController(); // of the question for an answer's fidelity
let removed = null; // the conversation deleted last, to be taken back

async function start() {
  showSettings();
  openFromAddress();
  try {
    if ((await meetServer()) && !hasKey()) askForKey();
  } catch {
    return report("The server cannot be reached.", "wrong");
  }
  draw();
}

// -- a question and its answer ----------------------------------------------------------------------------------------

function ask(event) {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || running || !askedModel()) return;
  const parent = editing ? editing.parent : chat.leaf;
  at("text").value = "";
  endEditing();
  reply(addNode(chat, parent, "user", text));
}

// Answers a question in its conversation, with `skip` in place of the dial's.
async function reply(question, skip = chosenSkip()) {
  const here = chat;
  const node = addNode(here, question.id, "assistant", "");
  const controller = new AbortController();
  setRunning({ chat: here, node, controller });
  saveAll(here);
  history.replaceState(null, "", `#${here.id}`);
  report("");
  draw(true);
  try {
    await stream(here, node, skip, controller.signal);
    await answered();
    report(`The answer is ${node.cut ? "cut off" : "complete"}, ${node.tokens} tokens.`);
  } catch (error) {
    fail(error, here, node, question);
  } finally {
    setRunning(null);
    if (here.nodes.includes(node)) finish(here, node);
    saveAll(here);
    draw();
  }
}

async function stream(here, node, skip, signal) {
  const path = pathTo(here, node.parent).map(({ role, content }) => ({ role, content }));
  const system = settings.system.trim();
  const messages = system ? [{ role: "system", content: system }, ...path] : path;
  const body = { model: askedModel(), messages, skip };
  for (const name of ["temperature", "max_tokens"]) if (settings[name] !== null) body[name] = settings[name];
  node.tokens = 0;
  for await (const event of answer(body, signal)) {
    const { delta = {}, finish_reason: reason } = event.choices[0] ?? {};
    node.answer = event.id;
    node.layers = event.first_cpp ?? node.layers;
    if (reason === "length") node.cut = true;
    if (!delta.content && !delta.reasoning_content) continue;
    node.tokens += 1;
    node.content += delta.content ?? "";
    if (delta.reasoning_content) node.thought = (node.thought ?? "") + delta.reasoning_content;
    showSoon(here, node);
  }
}

let drawing = false;

// Shows what came, once a picture of the screen.
function showSoon(here, node) {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const said = here === chat && elementOf(node);
    if (said) follow(() => showText(said, node));
  });
}

function finish(here, node) {
  if (!node.layers) return;
  noteSpeed(node.layers);
  if (!node.layers.skipped_layers.length || !node.answer) return;
  measure(here, node);
}

// Asks for the fidelity of an answer until it is known, or the next answer begins.
async function measure(here, node) {
  try {
    const found = await fidelity(node.answer, measuring.signal);
    if (found === null) return;
    const kept = here === chat ? here : readChat(here.id); // another tab may have gone on with it
    if (!kept?.nodes[node.id]) return;
    kept.nodes[node.id].fidelity = found;
    saveChat(kept);
    const said = here === chat && elementOf(node);
    if (said) follow(() => showAbout(said, kept.nodes[node.id]));
  } catch {
    // the server went away: nothing more is known
  }
}

function fail(error, here, node, question) {
  if (error.name === "AbortError") {
    node.stopped = true;
    report("Stopped.");
    if (!node.content && !node.thought) takeBack(here, node, question);
    return;
  }
  const said = error.name === "TypeError" ? "The server cannot be reached." : error.message;
  if (error instanceof KeyNeeded) askForKey();
  if (node.content || node.thought) node.wrong = said;
  else takeBack(here, node, question);
  report(said, "wrong");
}

// Nothing was answered: the question is in the box again, to be changed or sent once more.
function takeBack(here, node, question) {
  const others = siblings(here, node).filter((one) => one !== node);
  dropNode(here, question.id);
  if (others.length) return chooseBranch(here, others.at(-1));
  if (question.id !== here.nodes.length - 1) return;
  dropNode(here, question.parent);
  const beside = siblings(here, question);
  if (beside.length) chooseBranch(here, beside.at(-1));
  if (here === chat && !at("text").value) at("text").value = question.content;
  fit();
}

function setRunning(found) {
  running = found;
  at("send").hidden = found !== null;
  at("stop").hidden = found === null;
  if (found) {
    measuring.abort();
    measuring = new AbortController();
  } else if (!touch.matches && !document.querySelector("dialog[open]")) at("text").focus();
}

function stop() {
  running?.controller.abort();
}

// -- what stands under a message --------------------------------------------------------------------------------------------

function act(event) {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.classList.contains("copyCode")) return copy(button.closest("figure").querySelector("code").textContent, button);
  const node = chat.nodes[button.closest(".said").dataset.node];
  const name = button.dataset.action;
  if (name === "copy") return copy(node.content, button);
  if (running) return report("An answer is being made: stop it first.", "seen");
  if (name === "edit") return edit(node);
  if (name === "again") return again(node);
  if (name === "full") return again(node, 0);
  const there = siblings(chat, node);
  chooseBranch(chat, there[there.indexOf(node) + (name === "after" ? 1 : -1)]);
  saveAll(chat);
  draw();
}

function again(node, skip) {
  const question = node && chat.nodes[node.role === "user" ? node.id : node.parent];
  if (question && !running && askedModel()) reply(question, skip);
}

function edit(node) {
  editing = node;
  at("editing").hidden = false;
  at("text").value = node.content;
  at("text").focus();
  fit();
}

function endEditing() {
  editing = null;
  at("editing").hidden = true;
  fit();
}

// -- conversations ----------------------------------------------------------------------------------------------------------

function draw(toEnd = false) {
  const busy = running?.chat === chat ? running.node : null;
  follow(() => {
    at("log").replaceChildren(...pathTo(chat).map((node) => message(chat, node)));
    if (busy) elementOf(busy).setAttribute("aria-busy", "true");
    at("empty").hidden = chat.leaf !== null;
  }, toEnd);
  at("chats").replaceChildren(...chatList(allChats(), chat));
  at("noChats").hidden = at("chats").children.length > 0;
}

function elementOf(node) {
  return at("log").querySelector(`[data-node="${node.id}"]`);
}

function saveAll(one) {
  if (!one.nodes.length) return removeChat(one.id);
  if (!saveChat(one)) report("This browser keeps no more: the conversation ends with the page.", "wrong");
}

function open(found) {
  chat = found;
  endEditing();
  const hash = found.nodes.length ? `#${found.id}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname);
  draw(true);
  closeSide();
  if (!touch.matches) at("text").focus();
}

function openFromAddress() {
  endEditing();
  const id = location.hash.slice(1);
  if (running?.chat.id === id) chat = running.chat;
  else chat = (id && readChat(id)) || newChat();
  draw(true);
}

function chooseChat(event) {
  const button = event.target.closest("button");
  if (button?.dataset.open) open(running?.chat.id === button.dataset.open ? running.chat : readChat(button.dataset.open) ?? newChat());
  if (button?.dataset.remove) remove(button.dataset.remove);
}

function remove(id) {
  if (running?.chat.id === id) return report("An answer is being made there: stop it first.", "seen");
  removed = readChat(id);
  removeChat(id);
  if (chat.id === id) open(newChat());
  else draw();
  if (!removed) return;
  report(`"${removed.title}" is deleted.`, "seen");
  at("undo").hidden = false;
}

// Another tab has changed what is kept: a conversation that is open here as well goes on from there.
function stored(event) {
  const found = running?.chat !== chat && event.newValue && event.key === keyOf(chat) ? readChat(chat.id) : null;
  if (found) Object.assign(chat, found);
  draw();
}

function undo() {
  if (removed) saveChat(removed);
  removed = null;
  report("");
  draw();
}

// -- settings ---------------------------------------------------------------------------------------------------------------

function showSettings() {
  at("system").value = settings.system;
  at("temperature").value = settings.temperature ?? "";
  at("maxTokens").value = settings.max_tokens ?? "";
  markSettings();
}

function markSettings() {
  const own = settings.system || settings.temperature !== null || settings.max_tokens !== null;
  at("settingsButton").classList.toggle("changed", Boolean(own));
}

function changeSettings() {
  const number = (input) => (input.value !== "" && input.validity.valid ? Number(input.value) : null);
  settings.system = at("system").value;
  settings.temperature = number(at("temperature"));
  settings.max_tokens = number(at("maxTokens"));
  saveSetting("settings", settings);
  markSettings();
}

function askForKey() {
  at("keyForm").hidden = false;
  at("key").focus();
}

function takeKey(event) {
  event.preventDefault();
  useKey(at("key").value);
  at("key").value = "";
  at("keyForm").hidden = true;
  at("text").focus();
}

// -- the page ---------------------------------------------------------------------------------------------------------------

// Says what happened: to everybody where `kind` is "seen" or "wrong", else to those who listen.
function report(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
  at("notice").classList.toggle("hidden", !kind);
  at("undo").hidden = true;
}

function fit() {
  at("text").style.height = "auto";
  at("text").style.height = `${at("text").scrollHeight + 2}px`;
}

function openSide() {
  document.body.classList.toggle("side");
  at("menu").setAttribute("aria-expanded", document.body.classList.contains("side"));
}

function closeSide() {
  if (narrow.matches && document.body.classList.contains("side")) openSide();
}

const SHORTCUTS = {
  KeyN: () => open(newChat()),
  KeyR: () => again(pathTo(chat).at(-1)),
  KeyC: () => copy(pathTo(chat).findLast((node) => node.role === "assistant")?.content ?? ""),
  KeyS: () => toggle("settings"),
  KeyL: openSide,
};

function toggle(id) {
  if (at(id).open) at(id).close();
  else at(id).showModal();
}

function keyDown(event) {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (editing) return cancelEditing();
    closeSide();
    return stop();
  }
  const shortcut = event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code];
  if (shortcut) {
    event.preventDefault();
    shortcut();
  } else if (event.key === "?" && !event.target.matches("input, textarea")) toggle("keys");
}

function cancelEditing() {
  at("text").value = "";
  endEditing();
}

function keyInBox(event) {
  if (event.isComposing) return;
  const last = pathTo(chat).findLast((node) => node.role === "user");
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    at("ask").requestSubmit();
  } else if (event.key === "ArrowUp" && !at("text").value && last && !running) {
    event.preventDefault();
    edit(last);
  }
}

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", () => open(newChat()));
at("menu").addEventListener("click", openSide);
at("shade").addEventListener("click", closeSide);
at("log").addEventListener("click", act);
at("chats").addEventListener("click", chooseChat);
at("undo").addEventListener("click", undo);
at("cancelEdit").addEventListener("click", cancelEditing);
at("keyForm").addEventListener("submit", takeKey);
at("settings").addEventListener("input", changeSettings);
at("settingsButton").addEventListener("click", () => toggle("settings"));
at("keysButton").addEventListener("click", () => toggle("keys"));
for (const id of ["settings", "keys"]) at(id).querySelector(".close").addEventListener("click", () => toggle(id));
at("text").addEventListener("input", fit);
at("text").addEventListener("keydown", keyInBox);
document.addEventListener("keydown", keyDown);
addEventListener("popstate", openFromAddress);
addEventListener("storage", stored);
addEventListener("pagehide", () => running && saveChat(running.chat));
start();
