// Conversations, kept in this browser alone. One is a tree: editing a message or asking again begins a branch beside it.
// {id, title, updated, nodes: [{id, parent, role, content, ...}], leaf}: a node's id is its place, the path ends at `leaf`.

const PREFIX = "first_cpp/chat/";

export function newChat() {
  return { id: `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`, title: "", updated: 0, nodes: [], leaf: null };
}

export function addNode(chat, parent, role, content) {
  const node = { id: chat.nodes.length, parent, role, content };
  chat.nodes.push(node);
  chat.leaf = node.id;
  chat.updated = Date.now();
  if (!chat.title && role === "user") chat.title = content.trim().split("\n")[0].slice(0, 80);
  return node;
}

// Takes the newest node back: an answer of which nothing came, or a question that was refused.
export function dropNode(chat, leaf) {
  chat.nodes.pop();
  chat.leaf = leaf;
  if (!chat.nodes.length) chat.title = "";
}

// The nodes from the first message to `leaf`.
export function pathTo(chat, leaf = chat.leaf) {
  const path = [];
  for (let id = leaf; id !== null; id = chat.nodes[id].parent) path.unshift(chat.nodes[id]);
  return path;
}

// The node and those that stand in its place on other branches, oldest first.
export function siblings(chat, node) {
  return chat.nodes.filter((one) => one.parent === node.parent);
}

// Shows the branch of a node, down to its newest end.
export function chooseBranch(chat, node) {
  let leaf = node;
  for (let next = node; next; next = chat.nodes.findLast((one) => one.parent === leaf.id)) leaf = next;
  chat.leaf = leaf.id;
}

// -- the store ----------------------------------------------------------------------------------------------------------

// All conversations, the newest first; what is no conversation is passed over.
export function allChats() {
  const found = [];
  for (let i = 0; i < localStorage.length; i += 1) {
    const key = localStorage.key(i);
    if (key.startsWith(PREFIX)) found.push(parse(localStorage.getItem(key)));
  }
  return found.filter(Boolean).sort((a, b) => b.updated - a.updated);
}

export function keyOf(chat) {
  return PREFIX + chat.id;
}

export function readChat(id) {
  return parse(localStorage.getItem(PREFIX + id));
}

function parse(text) {
  try {
    const chat = JSON.parse(text);
    const ends = (id) => id === null || (Number.isInteger(id) && id >= 0 && id < chat.nodes.length);
    const whole = chat.nodes.every(
      (node, i) =>
        node.id === i &&
        ends(node.parent) &&
        (node.parent === null || node.parent < i) &&
        typeof node.content === "string" &&
        typeof (node.thought ?? "") === "string" &&
        ["user", "assistant"].includes(node.role),
    );
    return whole && ends(chat.leaf) && typeof chat.id === "string" ? { title: "", updated: 0, ...chat } : null;
  } catch {
    return null;
  }
}

// Keeps a conversation; where the browser's store is full, the oldest others make room. Returns whether it is kept.
export function saveChat(chat) {
  const others = allChats().filter((one) => one.id !== chat.id);
  for (;;) {
    try {
      localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
      return true;
    } catch {
      if (!others.length) return false;
      removeChat(others.pop().id);
    }
  }
}

export function removeChat(id) {
  localStorage.removeItem(PREFIX + id);
}

// -- settings -----------------------------------------------------------------------------------------------------------

// A value kept under a name, or `fallback` where there is none or what is there cannot be read.
export function readSetting(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`first_cpp/${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function saveSetting(name, value) {
  try {
    localStorage.setItem(`first_cpp/${name}`, JSON.stringify(value));
  } catch {
    // a full store: the setting lasts as long as the page
  }
}
