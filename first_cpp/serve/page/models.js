// Which of the server's models answers. One at a time is loaded, and the dial is that one's.

import { leaveDial, setUpDial } from "./dial.js";
import { health } from "./server.js";

const at = (id) => document.getElementById(id);
let server = null; // the answer of /health
let asked = null; // the name of the model that answers are asked of

// Looks at the server; returns whether it wants a key. Raises TypeError where it cannot be reached.
export async function meetServer() {
  server = await health();
  asked = server.loaded ?? server.model;
  const several = server.models.length > 1;
  at("choice").replaceChildren(...server.models.map((name) => new Option(name, name)));
  at("choice").hidden = !several;
  at("model").hidden = several;
  show();
  return server.key;
}

// The model to ask; null before the server was met.
export function askedModel() {
  return asked;
}

// An answer has come, so the model asked is loaded now.
export async function answered() {
  if (server.loaded === asked) return;
  server = await health();
  show();
}

function show() {
  at("choice").value = asked;
  at("model").textContent = asked;
  document.title = `${asked} - first_cpp`;
  if (server.loaded === asked) setUpDial({ ...server, model: asked });
  else leaveDial(`${asked} is loaded when you ask it something, in place of the other.`);
}

at("choice").addEventListener("change", () => {
  asked = at("choice").value;
  show();
});
