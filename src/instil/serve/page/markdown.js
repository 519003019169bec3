// A small, safe subset of Markdown: nodes and text only, in time that grows with the length of the text and no faster.
//
// Paragraphs, headings, lists, quotes, fenced code (also while its end is still to come), tables, rules; bold, italics,
// inline code, and links to http and https. Everything else, markup above all, is shown as the text that it is.

import { copyButton, el } from "./dom.js";

const DEEPEST = 8; // quotes and lists within one another
const OPEN = 32; // emphasis that is begun and not ended, at once
const CELLS = 20, ROWS = 300;

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])([ \t]+)(\S.*)$/;
const LONGEST_RULE = 200;

export function render(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

const isBlank = (line) => line.trim() === "";
const isRule = (line) => line.length < LONGEST_RULE && RULE.test(line);
const isQuote = (line) => /^ {0,3}>/.test(line);
const begins = (line) => FENCE.test(line) || HEADING.test(line) || isRule(line) || isQuote(line) || ITEM.test(line);

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (isBlank(line)) at += 1;
    else if ((found = FENCE.exec(line))) at = code(made, lines, at, found);
    else if ((found = HEADING.exec(line))) {
      // The page's own headings come before those of an answer.
      made.push(el(`h${Math.min(6, found[1].length + 2)}`, {}, ...inline(withoutMarks(found[2]))));
      at += 1;
    } else if (isRule(line)) {
      made.push(el("hr"));
      at += 1;
    } else if (depth < DEEPEST && isQuote(line)) at = quote(made, lines, at, depth);
    else if (depth < DEEPEST && ITEM.test(line)) at = list(made, lines, at, depth);
    else if (isTable(lines, at)) at = table(made, lines, at);
    else at = paragraph(made, lines, at, depth);
  }
  return made;
}

function withoutMarks(heading) {
  let end = heading.trimEnd().length;
  while (heading[end - 1] === "#") end -= 1;
  return heading[end - 1] === " " || heading[end - 1] === "\t" ? heading.slice(0, end).trimEnd() : heading.trimEnd();
}

function paragraph(made, lines, at, depth) {
  const first = at;
  do at += 1;
  while (at < lines.length && !isBlank(lines[at]) && !(depth < DEEPEST && begins(lines[at])) && !isTable(lines, at));
  made.push(el("p", {}, ...inline(lines.slice(first, at).map((line) => line.trim()).join("\n"))));
  return at;
}

function code(made, lines, at, [, fence, info]) {
  const first = at + 1;
  let end = first;
  while (end < lines.length && !closes(lines[end], fence)) end += 1;
  const text = lines.slice(first, end).join("\n");
  const name = info.trim().split(/\s/)[0].slice(0, 30);
  const shown = el("pre", { tabindex: "0", "aria-label": name ? `code, ${name}` : "code" }, el("code", {}, text));
  const head = el("div", { class: "code-head" }, el("span", {}, name), copyButton("Copy the code", () => text));
  made.push(el("div", { class: "code" }, head, shown));
  return end + 1;
}

function closes(line, fence) {
  const bare = line.trim();
  return bare.length >= fence.length && bare.length < 100 && [...bare].every((char) => char === fence[0]);
}

function quote(made, lines, at, depth) {
  const inner = [];
  while (at < lines.length && isQuote(lines[at])) {
    inner.push(lines[at].replace(/^ {0,3}> ?/, ""));
    at += 1;
  }
  made.push(el("blockquote", {}, ...blocks(inner, depth + 1)));
  return at;
}

const indent = (line) => line.length - line.trimStart().length;

function list(made, lines, at, depth) {
  const [, , mark] = ITEM.exec(lines[at]);
  const numbered = /\d/.test(mark), kind = mark.at(-1), margin = indent(lines[at]);
  const items = [];
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    const another = found && !isRule(lines[at]) && found[2].at(-1) === kind && found[1].length < margin + 2;
    if (!another) break;
    const inner = [found[4]], within = Math.min(found[1].length + 2, indent(lines[at]) + found[2].length + 1);
    at += 1;
    while (at < lines.length) {
      const line = lines[at];
      if (isBlank(line)) {
        let next = at;
        while (next < lines.length && isBlank(lines[next])) next += 1;
        if (next === lines.length || indent(lines[next]) < within) break;
        for (; at < next; at += 1) inner.push("");
      } else if (indent(line) >= within) inner.push(cut(line, found[1].length + found[2].length + 1)), (at += 1);
      else if (begins(line) || isBlank(lines[at - 1])) break;
      else inner.push(line.trim()), (at += 1); // a lazy line goes on with its paragraph
    }
    items.push(el("li", {}, ...tight(blocks(inner, depth + 1))));
    let next = at;
    while (next < lines.length && isBlank(lines[next])) next += 1;
    if (next > at && next < lines.length && ITEM.test(lines[next])) at = next;
  }
  const start = numbered ? parseInt(mark, 10) : 1;
  made.push(el(numbered ? "ol" : "ul", { start: numbered && start !== 1 ? start : null }, ...items));
  return at;
}

const cut = (line, width) => line.slice(Math.min(width, indent(line)));

function tight(nodes) {
  return nodes.length && nodes[0].localName === "p" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

const isTable = (lines, at) =>
  at + 1 < lines.length && lines[at].includes("|") && lines[at + 1].includes("-") &&
  lines[at + 1].length < 1000 && /^[ |:-]+$/.test(lines[at + 1]) && lines[at + 1].includes("|") &&
  cells(lines[at]).length === cells(lines[at + 1]).length && cells(lines[at]).length <= CELLS;

function cells(line) {
  let bare = line.trim();
  if (bare.startsWith("|")) bare = bare.slice(1);
  if (bare.endsWith("|")) bare = bare.slice(0, -1);
  return bare.split("|").map((cell) => cell.trim());
}

function table(made, lines, at) {
  const head = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : null));
  const row = (tag, texts) =>
    el("tr", {}, ...head.map((_, column) => el(tag, { class: sides[column] }, ...inline(texts[column] ?? ""))));
  const rows = [];
  const first = at;
  for (at += 2; at < lines.length && lines[at].includes("|") && rows.length < ROWS; at += 1) rows.push(cells(lines[at]));
  const body = el("tbody", {}, ...rows.map((texts) => row("td", texts)));
  const made_of = el("table", {}, el("thead", {}, row("th", cells(lines[first]))), body);
  made.push(el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "table" }, made_of));
  return at;
}

// Inline text: one pass that cuts it into pieces, marks of emphasis matched by a stack from which each is taken once.

export function inline(text, links = true) {
  const pieces = []; // {text} | {node} | {mark, tag, opens, closes}
  const open = []; // indices into pieces of marks that may be closed
  const counts = new Map(); // of each mark in `open`
  const ticks = backticks(text);
  let plain = "";
  const flush = () => {
    if (plain) pieces.push({ text: plain });
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    const char = text[at];
    if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (char === "`") {
      const size = run(text, at), end = ticks.after(size, at + size);
      if (end < 0) plain += text.slice(at, at + size), (at += size);
      else {
        flush();
        pieces.push({ node: el("code", {}, trimmed(text.slice(at + size, end))) });
        at = end + size;
      }
    } else if (char === "*" || char === "_") {
      const size = run(text, at);
      flush();
      marks(pieces, open, counts, text, at, size);
      at += size;
    } else if (links && (char === "[" || char === "h")) {
      const found = char === "[" ? link(text, at) : bare(text, at);
      if (found) {
        flush();
        pieces.push({ node: found.node });
        at = found.end;
      } else (plain += char), (at += 1);
    } else {
      plain += char;
      at += 1;
    }
  }
  flush();
  return nested(pieces);
}

function run(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function trimmed(text) {
  const flat = text.replaceAll("\n", " ");
  const padded = flat.length > 2 && flat.startsWith(" ") && flat.endsWith(" ") && flat.trim() !== "";
  return padded ? flat.slice(1, -1) : flat;
}

function backticks(text) {
  const places = new Map();
  for (let at = text.indexOf("`"); at >= 0; ) {
    const size = run(text, at);
    if (!places.has(size)) places.set(size, { next: 0, all: [] });
    places.get(size).all.push(at);
    at = text.indexOf("`", at + size);
  }
  return {
    after(size, from) {
      const found = places.get(size);
      if (!found) return -1;
      while (found.next < found.all.length && found.all[found.next] < from) found.next += 1;
      return found.all[found.next] ?? -1;
    },
  };
}

const isWord = (char) => char !== undefined && /[\p{L}\p{N}]/u.test(char);
const isSpace = (char) => char === undefined || /\s/.test(char);

function marks(pieces, open, counts, text, at, size) {
  const char = text[at], before = text[at - 1], after = text[at + size];
  if (size > 3) return void pieces.push({ text: text.slice(at, at + size) });
  const within = isWord(before) && isWord(after) && (char === "_" || size === 1); // 2*3*4 and snake_case are no marks
  const opens = !isSpace(after) && !within, closes = !isSpace(before) && !within;
  // Of three, the strong mark is the outer one: it is the first to open and the last to close.
  const sizes = size < 3 ? [size] : opens && !closes ? [2, 1] : top(pieces, open) === 2 ? [2, 1] : [1, 2];
  for (const one of sizes) {
    const mark = char.repeat(one);
    if (closes && counts.get(mark) > 0) {
      let index;
      do {
        index = open.pop();
        counts.set(pieces[index].mark, counts.get(pieces[index].mark) - 1);
      } while (pieces[index].mark !== mark);
      if (index < pieces.length - 1) {
        pieces[index].ends = pieces.length;
        pieces.push({ mark, closing: true });
      } else pieces.push({ text: mark });
    } else {
      if (opens && open.length < OPEN) {
        open.push(pieces.length);
        counts.set(mark, (counts.get(mark) ?? 0) + 1);
      }
      pieces.push({ mark });
    }
  }
}

const top = (pieces, open) => (open.length ? pieces[open.at(-1)].mark.length : 0);

function nested(pieces) {
  const stack = [[]];
  for (const piece of pieces) {
    if (piece.node) stack.at(-1).push(piece.node);
    else if (piece.text !== undefined) stack.at(-1).push(piece.text);
    else if (piece.ends !== undefined) stack.push([]);
    else if (piece.closing) {
      const inner = stack.pop();
      stack.at(-1).push(el(piece.mark.length === 2 ? "strong" : "em", {}, ...inner));
    } else stack.at(-1).push(piece.mark);
  }
  return stack[0];
}

const LABEL = 300, ADDRESS = 1000; // characters, so that no bracket makes the whole text be looked through again

function link(text, at) {
  let end = at + 1;
  while (end < text.length && end - at <= LABEL && text[end] !== "]" && text[end] !== "[" && text[end] !== "\n") end += 1;
  if (text[end] !== "]" || text[end + 1] !== "(" || end === at + 1) return null;
  const stop = addressEnd(text, end + 2);
  if (text[stop] !== ")") return null;
  const node = anchor(text.slice(end + 2, stop), inline(text.slice(at + 1, end), false));
  return node && { node, end: stop + 1 };
}

function addressEnd(text, at) {
  let depth = 0;
  const most = Math.min(text.length, at + ADDRESS);
  for (; at < most; at += 1) {
    const code = text.charCodeAt(at);
    if (code <= 32 || code === 60 || code === 62) break; // white space, < and >
    if (code === 40) depth += 1;
    else if (code === 41 && (depth -= 1) < 0) break;
  }
  return at;
}

function bare(text, at) {
  if (isWord(text[at - 1]) || !(text.startsWith("http://", at) || text.startsWith("https://", at))) return null;
  let end = addressEnd(text, at);
  while (/[.,;:!?'"*_`\]]/.test(text[end - 1])) end -= 1;
  const address = text.slice(at, end), node = anchor(address, [address]);
  return node && { node, end };
}

function anchor(address, label) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  const props = { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  return el("a", props, ...label);
}
