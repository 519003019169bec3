// Asking this server: the key that it may want, errors in words, and streams of events.

import { byId, el } from "./dom.js";

const KEY = "instil-key"; // in this tab only, and gone with it

export class Refused extends Error {
  constructor(status, message, retryAfter = null, code = null) {
    super(message);
    Object.assign(this, { status, retryAfter, code });
  }
}

const stored = () => sessionStorage.getItem(KEY) ?? "";
export const hasKey = () => stored() !== "";

let asking = null; // one dialog, whoever needs the key

function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const input = el("input", { type: "password", id: "key", autocomplete: "off", required: true, "aria-describedby": "key-why" });
    const why = wrong ? "That key was not taken." : "This server wants a key.";
    const dialog = el("dialog", { class: "key", "aria-labelledby": "key-title" },
      el("h2", { id: "key-title" }, "Key"),
      el("p", { id: "key-why", class: wrong ? "bad" : "soft" }, `${why} Whoever started it knows the key. It is kept in this tab only.`),
      el("form", { method: "dialog" }, el("label", { for: "key" }, "Key"), input, el("button", { class: "accent" }, "Go on")));
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.remove();
      asking = null;
      resolve(input.value.trim() !== "");
    });
    dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close();
    });
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
  return asking;
}

export async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = stored();
    const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...(body ? { "Content-Type": "application/json" } : {}) };
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await refused(response);
    if (stored() !== key) continue; // another request has asked meanwhile
    if (!(await askForKey(key !== ""))) throw new Refused(401, "Without a key the server does not answer.");
  }
}

async function refused(response) {
  let message = `the server said ${response.status}`, code = null;
  try {
    const said = await response.json();
    message = said.error?.message ?? (typeof said.detail === "string" ? said.detail : message);
    code = said.error?.code ?? null;
  } catch { /* no JSON: the status has to do */ }
  const after = response.headers.get("Retry-After");
  const seconds = after === null ? null : /^\d+$/.test(after) ? Number(after) : Math.max(1, Math.ceil((Date.parse(after) - Date.now()) / 1000));
  return new Refused(response.status, message, Number.isFinite(seconds) ? seconds : null, code);
}

export const json = async (path, options) => (await request(path, options)).json();

// The events of a stream: {event, data}. It ends where the stream ends; a broken one throws what fetch throws.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = "message", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const ended of lines) {
        const line = ended.endsWith("\r") ? ended.slice(0, -1) : ended;
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          [event, data] = ["message", []];
        } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line.startsWith("event:")) event = line.slice(6).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// A report has no key in its address: where one is needed, a ticket for this one look opens it.
export const reportLink = (name, label, props = {}) =>
  el("a", {
    href: `/runs/${name.split("/").map(encodeURIComponent).join("/")}/report`,
    target: "_blank",
    rel: "noopener",
    ...props,
    onclick: async (event) => {
      if (!hasKey()) return;
      event.preventDefault();
      const tab = window.open("about:blank", "_blank");
      try {
        const { url } = await json(`/runs/${name.split("/").map(encodeURIComponent).join("/")}/ticket`, { body: {} });
        if (tab) tab.opener = null;
        if (tab) tab.location.replace(url);
        else window.location.assign(url);
      } catch (error) {
        tab?.close();
        const told = byId("told");
        if (told) told.textContent = error.message;
      }
    },
  }, label);
