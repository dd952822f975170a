// Markdown as elements: every text of the model becomes a text node, so that nothing in it can be markup.
// What is known: headings, lists, quotes, rules, tables, code in fences and in lines, emphasis, links to the web.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)(?:\s+\w+=[^`]*|\s*\{[^`]*)?\s*$/; // a line of other words is no fence
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}>[ \t]?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)| *$)/;
const DIVIDER = /^ {0,3}\|?(?: *:?-+:? *\|)+(?: *:?-+:? *)?$/;
const SAFE = /^(?:https?:\/\/|mailto:)[^\s<>"\\]+$/i;
const DEEPEST = 12; // quotes in lists in quotes; deeper ones are shown as text

// Shows a text that grows: blocks that did not change stay as they are, with what the reader has selected in them.
export class Rendered {
  #place;
  #shown = [];

  constructor(place) {
    this.#place = place;
  }

  update(text) {
    const found = blocks(text.split("\n"));
    const keys = found.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < keys.length && keys[same] === this.#shown[same]) same += 1;
    while (this.#place.childNodes.length > same) this.#place.lastChild.remove();
    this.#place.append(...found.slice(same).map((block) => element(block, 0)));
    this.#shown = keys;
  }
}

// -- lines to blocks ----------------------------------------------------------------------------------------------------

function blocks(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const take = [takeCode, takeHeading, takeRule, takeQuote, takeTable, takeList, takeText].find((one) => one.starts(lines, at));
    const [block, next] = take(lines, at);
    found.push(block);
    at = next;
  }
  return found;
}

function takeCode(lines, at) {
  const [, fence, language] = FENCE.exec(lines[at]);
  const indent = lines[at].search(/\S/);
  const code = [];
  for (at += 1; at < lines.length; at += 1) {
    const line = lines[at].trim();
    if (line.length >= fence.length && line === fence[0].repeat(line.length)) return [{ kind: "code", language, code }, at + 1];
    code.push(lines[at].slice(Math.min(indent, lines[at].search(/\S|$/))));
  }
  return [{ kind: "code", language, code }, at]; // not closed yet: more may come
}
takeCode.starts = (lines, at) => FENCE.test(lines[at]);

function takeHeading(lines, at) {
  const [, marks, text] = HEADING.exec(lines[at]);
  return [{ kind: "heading", level: marks.length, text: text.trim().replace(/ #+$/, "") }, at + 1];
}
takeHeading.starts = (lines, at) => HEADING.test(lines[at]);

function takeRule(lines, at) {
  return [{ kind: "rule" }, at + 1];
}
takeRule.starts = (lines, at) => RULE.test(lines[at]);

function takeQuote(lines, at) {
  const inside = [];
  for (; at < lines.length && QUOTE.test(lines[at]); at += 1) inside.push(lines[at].replace(QUOTE, ""));
  return [{ kind: "quote", lines: inside }, at];
}
takeQuote.starts = (lines, at) => QUOTE.test(lines[at]);

function takeTable(lines, at) {
  const head = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "right" : "left"));
  const rows = [];
  for (at += 2; at < lines.length && lines[at].includes("|") && lines[at].trim(); at += 1) rows.push(cells(lines[at]));
  return [{ kind: "table", head, sides, rows }, at];
}
takeTable.starts = (lines, at) =>
  lines[at].includes("|") && DIVIDER.test(lines[at + 1] ?? "") && cells(lines[at]).length === cells(lines[at + 1]).length;

function cells(line) {
  const found = [""];
  const text = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") found[found.length - 1] += text[(at += 1)];
    else if (text[at] === "|") found.push("");
    else found[found.length - 1] += text[at];
  }
  return found.map((cell) => cell.trim());
}

function takeList(lines, at) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  let width = 0;
  for (; at < lines.length; at += 1) {
    const line = lines[at];
    const item = ITEM.exec(line);
    if (item && item[1].length < indent.length + 2 && /\d/.test(item[2]) === ordered && !RULE.test(line)) {
      width = item[0].length;
      items.push([line.slice(width)]);
      continue;
    }
    if (!line.trim()) {
      const next = lines.slice(at).find((later) => later.trim()) ?? "";
      if (!(next.search(/\S/) > indent.length || (ITEM.test(next) && /\d/.test(ITEM.exec(next)[2]) === ordered))) break;
      items[items.length - 1].push("");
    } else if (line.search(/\S/) > indent.length) items[items.length - 1].push(line.slice(Math.min(width, line.search(/\S/))));
    else if (lines[at - 1].trim() && isText(lines, at)) items[items.length - 1].push(line.trim());
    else break;
  }
  return [{ kind: "list", start: ordered ? parseInt(mark, 10) : null, items }, at];
}
takeList.starts = (lines, at) => ITEM.test(lines[at]);

function takeText(lines, at) {
  const found = [lines[at]];
  for (at += 1; at < lines.length && lines[at].trim() && isText(lines, at); at += 1) found.push(lines[at]);
  return [{ kind: "text", text: found.map((line) => line.trim()).join("\n") }, at];
}
takeText.starts = () => true;

function isText(lines, at) {
  return ![takeCode, takeHeading, takeRule, takeQuote, takeTable, takeList].some((one) => one.starts(lines, at));
}

// -- blocks to elements ----------------------------------------------------------------------------------------------------

export function make(tag, kind = "", ...inside) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...inside);
  return made;
}

function element(block, depth) {
  return ELEMENTS[block.kind](block, depth);
}

function inner(lines, depth) {
  if (depth >= DEEPEST) return [document.createTextNode(lines.join("\n"))];
  return blocks(lines).map((block) => element(block, depth + 1));
}

const ELEMENTS = {
  code({ language, code }) {
    const copy = make("button", "quiet copyCode", "Copy");
    copy.type = "button";
    const head = make("figcaption", "", make("span", "", language || "code"), copy);
    return make("figure", "code", head, make("pre", "", make("code", "", code.join("\n"))));
  },
  heading: ({ level, text }) => make(`h${Math.min(level + 1, 6)}`, "", ...inline(text)),
  rule: () => make("hr"),
  quote: ({ lines }, depth) => make("blockquote", "", ...inner(lines, depth)),
  table({ head, sides, rows }) {
    const row = (tag, texts) =>
      make("tr", "", ...sides.map((side, i) => make(tag, side, ...inline(texts[i] ?? ""))));
    const body = make("tbody", "", ...rows.map((texts) => row("td", texts)));
    return make("div", "wide", make("table", "", make("thead", "", row("th", head)), body));
  },
  list({ start, items }, depth) {
    const list = make(start === null ? "ul" : "ol", "", ...items.map((lines) => listItem(lines, depth)));
    if (start !== null && start !== 1) list.start = start;
    return list;
  },
  text: ({ text }) => make("p", "", ...inline(text)),
};

// An item that begins with a line of text has no paragraph around it, unless paragraphs follow.
function listItem(lines, depth) {
  while (lines.length > 1 && !lines.at(-1).trim()) lines = lines.slice(0, -1);
  const found = inner(lines, depth);
  if (found[0]?.tagName === "P" && !lines.includes("")) found.splice(0, 1, ...found[0].childNodes);
  return make("li", "", ...found);
}

// -- text to text nodes, emphasis and links -------------------------------------------------------------------------------

const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//g;
const EMPHASIS = { "**": "strong", __: "strong", "~~": "s", "*": "em", _: "em" };

export function inline(text, depth = 0) {
  const found = [];
  const missing = new Set(); // marks that are not closed from here on: they are not looked for again
  let from = 0; // of text that is not in `found` yet
  let at = 0;
  const add = (node, start, end) => {
    if (start > from) found.push(document.createTextNode(text.slice(from, start)));
    if (node) found.push(node);
    from = at = end;
  };
  for (;;) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    if (!special || depth > DEEPEST) break;
    const start = special.index;
    const span = (SPANS[special[0]] ?? link)(text, start, depth, missing);
    if (span) add(span[0], start, span[1]);
    else at = start + special[0].length;
  }
  add(null, text.length, text.length);
  return found;
}

// What a special character begins: its node and where it ends, or null where it stands for itself.
const SPANS = { "\n": lineBreak, "\\": escaped, "`": codeSpan, "*": emphasis, _: emphasis, "~": emphasis };

function lineBreak(text, start) {
  return [make("br"), start + 1];
}

function escaped(text, start) {
  return /[!-/:-@[-`{-~]/.test(text[start + 1] ?? "") ? [document.createTextNode(text[start + 1]), start + 2] : null;
}

function run(text, start) {
  let end = start + 1;
  while (text[end] === text[start]) end += 1;
  return text.slice(start, end);
}

function codeSpan(text, start, depth, missing) {
  const marks = run(text, start);
  const plain = [document.createTextNode(marks), start + marks.length];
  if (missing.has(marks)) return plain;
  for (let end = text.indexOf("`", start + marks.length); end !== -1; end = text.indexOf("`", end)) {
    const closing = run(text, end);
    if (closing === marks) {
      const code = text.slice(start + marks.length, end).replace(/\n/g, " ");
      return [make("code", "", /^ .*\S.* $/.test(code) ? code.slice(1, -1) : code), end + marks.length];
    }
    end += closing.length;
  }
  missing.add(marks);
  return plain;
}

function emphasis(text, start, depth, missing) {
  const marks = run(text, start);
  const mark = marks.length > 1 ? marks.slice(0, 2) : marks;
  const first = start + mark.length;
  if (!EMPHASIS[mark] || missing.has(mark) || /\s/.test(text[first] ?? " ")) return null;
  if (mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[start - 1] ?? "")) return [document.createTextNode(marks), start + marks.length];
  for (let end = text.indexOf(mark, first + 1); end !== -1; end = text.indexOf(mark, end + 1)) {
    if (mark.length === 2 && text[end + 2] === mark[0]) end += 1; // ***both***: the inner one closes first
    const closing = run(text, end);
    const after = text[end + closing.length] ?? "";
    if (mark.length === 1 && closing.length === 2) end += 1; // ** within * belongs to what is inside
    else if (!/\s/.test(text[end - 1]) && !(mark[0] === "_" && /[\p{L}\p{N}]/u.test(after)))
      return [make(EMPHASIS[mark], "", ...inline(text.slice(first, end), depth + 1)), end + mark.length];
  }
  missing.add(mark);
  return null;
}

// [text](address), ![text](address), <address> and bare addresses; pictures are not fetched, their text leads to them.
function link(text, start, depth, missing) {
  if (text[start] === "h" || text[start] === "<") {
    const from = text[start] === "<" ? start + 1 : start;
    const found = /^[^\s<>"'`]+/.exec(text.slice(from, from + 2000))?.[0] ?? "";
    const address = from === start ? found.replace(/[.,;:!?)\]}*_]+$/, "") : found;
    if (!SAFE.test(address) || (from > start && text[from + address.length] !== ">")) return null;
    return [anchor(address, [document.createTextNode(address)]), from + address.length + (from - start)];
  }
  const label = text[start] === "!" ? start + 2 : start + 1;
  if ((text[start] === "!" && text[start + 1] !== "[") || missing.has("](")) return null;
  const middle = text.indexOf("](", label);
  if (middle === -1) missing.add("](");
  if (middle === -1 || text.slice(label, middle).includes("\n\n")) return null;
  const target = /^\(<?((?:[^()\s<>]|\([^()\s<>]*\))+)>?(?:\s+"[^"]*")?\)/.exec(text.slice(middle + 1, middle + 2001));
  if (!target || !SAFE.test(target[1])) return null;
  const words = inline(text.slice(label, middle), depth + 1);
  return [anchor(target[1], words), middle + 1 + target[0].length];
}

function anchor(address, words) {
  const made = make("a", "", ...words);
  made.href = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}
