// Elements are made here and nowhere out of text: no page of this server ever parses markup that came from a model.

const SVG = "http://www.w3.org/2000/svg";

const put = (node, props, children) => {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

export const el = (tag, props = {}, ...children) => put(document.createElement(tag), props, children);
export const svg = (tag, props = {}, ...children) => put(document.createElementNS(SVG, tag), props, children);
export const byId = (id) => document.getElementById(id);

const SHAPES = {
  copy: ["M9 9h11v11H9z", "M5 15H4V4h11v1"],
  check: ["M5 13l4 4L19 7"],
  up: ["M7 11v9H4v-9z", "M7 11l4-8c1.7 0 2.7 1.3 2.3 2.9L12.5 9H18c1.4 0 2.3 1.2 2 2.5l-1.6 6.9A2 2 0 0 1 16.4 20H7"],
  retry: ["M20 12a8 8 0 1 1-2.4-5.7L20 8.6", "M20 3.5v5.1h-5.1"],
  edit: ["M4 20h4L19.5 8.5l-4-4L4 16z"],
  send: ["M12 20V4.5", "M5.5 11L12 4.5l6.5 6.5"],
  stop: ["M7 7h10v10H7z"],
  left: ["M15 5l-7 7 7 7"],
  right: ["M9 5l7 7-7 7"],
};

export const icon = (name) => {
  const turned = name === "down" ? "rotate(180 12 12)" : null;
  const paths = (SHAPES[name] ?? SHAPES.up).map((d) => svg("path", { d }));
  return svg("svg", { viewBox: "0 0 24 24", class: `icon ${name}`, "aria-hidden": "true" }, svg("g", { transform: turned }, ...paths));
};

export const iconButton = (name, label, onclick, props = {}) =>
  el("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick, ...props }, icon(name));

export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* not allowed here: the older way may be */ }
  }
  const area = el("textarea", { class: "sr", "aria-hidden": "true", tabindex: "-1" });
  const before = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus?.();
  return copied;
}

export const copyButton = (label, text) => {
  const button = iconButton("copy", label, async () => {
    const copied = await copyText(text());
    button.replaceChildren(icon(copied ? "check" : "copy"));
    say(copied ? "Copied." : "The browser did not let the text be copied.");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
};

// What a screen reader is told once it is complete; nothing is read out piece by piece.
export const say = (text) => {
  const place = byId("told");
  if (place) place.textContent = text;
};
