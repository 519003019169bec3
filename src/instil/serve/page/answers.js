// One answer as it comes: asked for, waited for, read piece by piece, and what is said when that goes wrong.

import { Refused, events, request } from "./api.js";

const PATIENCE = 3; // times that a busy server is asked again without being told to
const LONGEST = 120; // seconds that it may ask for
const LOST = "The connection was lost; what was said until then is kept.";

// Fills `one` ({text, state, note}); `changed` is called whenever it has. Never throws.
export async function answer(one, body, signal, changed) {
  try {
    for (let tries = 0; ; tries += 1) {
      try {
        await read(one, await request("/v1/chat/completions", { body, signal }), changed);
        return;
      } catch (error) {
        if (!(error instanceof Refused) || ![429, 503].includes(error.status)) throw error;
        const seconds = Math.min(LONGEST, error.retryAfter ?? 2 * (tries + 1));
        if (tries >= PATIENCE) throw new Refused(error.status, `The server is busy (${error.message}). Try again in ${seconds} s.`);
        await wait(one, seconds, signal, changed);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") Object.assign(one, { state: "stopped", note: one.text ? "Stopped." : "Stopped before it began." });
    else if (error instanceof Refused) Object.assign(one, { state: "failed", note: inWords(error) });
    else Object.assign(one, { state: "lost", note: one.text ? LOST : "The connection was lost before the answer began." });
  } finally {
    changed();
  }
}

async function wait(one, seconds, signal, changed) {
  for (let left = seconds; left > 0; left -= 1) {
    one.note = `The server is busy; asking again in ${left} s.`;
    changed();
    await new Promise((resolve, reject) => {
      const stop = () => reject(new DOMException("stopped", "AbortError"));
      if (signal.aborted) stop();
      const timer = setTimeout(() => (signal.removeEventListener("abort", stop), resolve()), 1000);
      signal.addEventListener("abort", () => (clearTimeout(timer), stop()), { once: true });
    });
  }
  one.note = "";
  changed();
}

function inWords(error) {
  const text = /[.?!]$/.test(error.message) ? error.message : `${error.message}.`;
  const said = text[0].toUpperCase() + text.slice(1);
  const full = error.code === "context_length_exceeded" || /context/.test(error.message);
  return full && !/shorten/.test(said) ? `${said} Begin a new chat, or edit an earlier question.` : said;
}

async function read(one, response, changed) {
  let ending = null;
  one.state = "streaming";
  for await (const { data } of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, chunk.error.message ?? String(chunk.error));
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    ending = choice.finish_reason ?? ending;
    if (choice.delta?.content) {
      one.text += choice.delta.content;
      changed();
    }
  }
  if (ending === null) throw new Error("the stream broke off");
  one.state = "done";
  if (ending === "length") one.note = "It was cut at the most tokens that an answer may have; see Settings.";
  else if (!one.text.trim()) one.note = "The model said nothing.";
}
