// The chat: what is seen of a conversation, and what can be done with it.

import { json, reportLink } from "./api.js";
import { answer } from "./answers.js";
import { byId, copyButton, el, icon, iconButton, say } from "./dom.js";
import { render } from "./markdown.js";
import { choice, isOver, newTry, newTurn, prompt, shown, wanted } from "./talk.js";

const NEAR = 140; // pixels from the end of the page within which it follows the answer
const state = { models: [], about: {}, turns: [], running: null, views: [] };
const [talk, ask, form, send] = ["talk", "ask", "form", "send"].map(byId);
const [picker, versus, welcome] = ["model", "versus", "welcome"].map(byId);

const model = () => picker.value;
const about = (name) => state.about[name] ?? {};
const baseOf = (name) =>
  state.models.find((other) => about(other).base_of === name) ?? state.models.find((other) => other === `${name}:base`);
const beside = () => !versus.hidden && versus.getAttribute("aria-pressed") === "true";
const numberIn = (id) => (byId(id).value.trim() === "" || byId(id).validity.badInput ? null : Number(byId(id).value));
const options = (name) => ({
  temperature: numberIn("temperature"), maxTokens: numberIn("tokens"), usual: about(name).temperature ?? null,
});

// Asking.

function begin(text) {
  const models = beside() ? [model(), baseOf(model())] : [model()];
  state.turns.push(newTurn(text, models));
  draw();
  toEnd();
  answerTurn(state.turns.length - 1);
}

async function answerTurn(at) {
  const turn = state.turns[at], running = new AbortController();
  state.running = running;
  busy(true);
  for (const side of turn.sides) side.tries = side.tries.filter((one) => one.text.trim()); // what came to nothing is no try
  const before = Math.max(...turn.sides.map((side) => side.tries.length));
  await Promise.all(turn.sides.map(async (side) => {
    const one = newTry(), messages = prompt(state.turns, at, side.model, byId("system").value);
    one.messages = messages;
    side.tries.push(one);
    side.at = side.tries.length - 1;
    const paint = () => state.turns[at] === turn && state.views[at].sides.get(side.model).paint();
    paint();
    await answer(one, wanted(side.model, messages, options(side.model), before), running.signal, paint);
    if (running === state.running) say(one.text ? `${side.model} answered: ${one.text}${one.note ? ` (${one.note})` : ""}` : one.note);
  }));
  if (running !== state.running) return; // what was asked is gone
  state.running = null;
  busy(false);
  draw(at);
}

const stop = () => state.running?.abort();

function leave() {
  stop();
  state.running = null;
  busy(false);
}

function busy(now) {
  document.body.classList.toggle("busy", now);
  send.replaceChildren(icon(now ? "stop" : "send"));
  send.setAttribute("aria-label", now ? "Stop" : "Send");
  send.title = now ? "Stop (Escape)" : "Send (Enter)";
  picker.disabled = now;
  for (const button of talk.querySelectorAll("button.later")) button.disabled = now;
}

// What people make of an answer.

async function tell(body, done, place) {
  try {
    const { files } = await json("/feedback", { body });
    done();
    place.textContent = `Kept in ${files.join(" and ")}.`;
  } catch (error) {
    place.textContent = `Not kept: ${error.message}`;
  }
  say(place.textContent);
}

// Drawing. A turn is drawn anew when what can be done with it changes; while an answer comes, only its text is.

function draw(from = 0) {
  const last = state.turns.length - 1, following = isNearEnd(), height = window.scrollY;
  const focused = document.activeElement?.dataset?.focus;
  state.views.splice(from);
  while (talk.children.length > from) talk.lastChild.remove();
  state.turns.slice(from).forEach((turn, offset) => {
    const view = turnView(turn, from + offset, from + offset === last);
    state.views.push(view);
    talk.append(view.element);
  });
  welcome.hidden = state.turns.length > 0;
  document.body.classList.toggle("wide", state.turns.some((turn) => turn.sides.length > 1));
  if (focused) talk.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  if (following) toEnd();
  else window.scrollTo(0, height); // a page that got shorter for a moment was moved
}

function turnView(turn, at, isLast) {
  const views = turn.sides.map((side) => sideView(turn, side, at, isLast));
  const answers = el("div", { class: `answers of${turn.sides.length}` }, ...views.map((view) => view.element));
  return {
    element: el("section", { class: "turn", "aria-label": `Question ${at + 1}` }, questionView(turn, at), answers),
    sides: new Map(turn.sides.map((side, number) => [side.model, views[number]])),
  };
}

function questionView(turn, at) {
  const edit = iconButton("edit", "Edit and ask anew; what came after it goes", () => editQuestion(turn, at), {
    class: "quiet later", "data-focus": `edit${at}`,
  });
  return el("div", { class: "question" }, edit, el("div", { class: "asked", dir: "auto" }, turn.asked));
}

function editQuestion(turn, at) {
  const question = talk.children[at].querySelector(".question");
  const area = el("textarea", { "aria-label": "Edit the question", rows: "2" });
  area.value = turn.asked;
  const back = () => {
    question.replaceWith(questionView(turn, at));
    talk.children[at].querySelector("[data-focus]").focus();
  };
  const again = () => {
    if (!area.value.trim()) return;
    leave();
    state.turns.splice(at);
    begin(area.value.trim());
    ask.focus();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      back();
    } else if (enters(event)) {
      event.preventDefault();
      again();
    }
  });
  area.addEventListener("input", () => fit(area));
  question.replaceChildren(el("div", { class: "editing" }, area, el("div", { class: "row" },
    el("button", { type: "button", onclick: back }, "Cancel"),
    el("button", { type: "button", class: "accent", onclick: again }, "Ask anew"))));
  fit(area);
  area.focus();
}

function sideView(turn, side, at, isLast) {
  const text = el("div", { class: "text", dir: "auto" });
  const note = el("p", { class: "note", hidden: true });
  const foot = el("div", { class: "foot" });
  const isBase = Boolean(about(side.model).base_of) || side.model.endsWith(":base");
  const name = el("h2", { class: "name" }, el("i", { class: `dot ${isBase ? "base" : "tuned"}` }), el("bdi", {}, side.model));
  let due = false;
  const now = () => {
    due = false;
    const one = shown(side), following = isNearEnd();
    text.classList.toggle("waiting", one.state === "waiting" || (one.state === "streaming" && !one.text));
    text.classList.toggle("streaming", one.state === "streaming");
    text.replaceChildren(render(one.text));
    note.hidden = !one.note;
    note.className = `note ${one.state === "failed" || one.state === "lost" ? "bad" : "soft"}`;
    note.replaceChildren(one.note);
    if (following && state.running) toEnd();
  };
  const paint = () => {
    if (!due) requestAnimationFrame(now);
    due = true;
  };
  const one = shown(side);
  if (one) now();
  if (isOver(one)) foot.append(...actions(turn, side, one, at, isLast));
  const better = turn.better !== null && one?.text === turn.better ? " better" : "";
  if (better) name.append(el("span", { class: "tag better" }, "better"));
  return { element: el("article", { class: `answer${better}`, "aria-label": `Answer of ${side.model}` }, name, text, note, foot), paint };
}

function actions(turn, side, one, at, isLast) {
  const key = `${at}${side.model}`, place = el("span", { class: "small soft kept" }, one.kept ?? "");
  const made = [];
  if (side.tries.length > 1) made.push(pager(side, at));
  if (one.text.trim()) {
    made.push(copyButton("Copy the answer", () => one.text));
    for (const [kind, label] of [["up", "A good answer: keep it"], ["down", "A bad answer"]]) {
      const given = one.thumb !== null;
      const button = iconButton(kind, label, () => thumb(one, kind, at, place), {
        "aria-pressed": String(one.thumb === kind), disabled: given, "data-focus": `${kind}${key}`,
      });
      made.push(button);
    }
  }
  if (isLast) {
    const props = { class: "quiet later", "data-focus": `retry${key}` };
    if (one.state === "done") made.push(iconButton("retry", "Try again", () => retry(at), props));
    else made.push(el("button", { ...props, type: "button", class: "later", onclick: () => retry(at) }, "Try again"));
  }
  const two = choice(turn, side);
  if (two && isLast) {
    made.push(el("button", { type: "button", class: "later", "data-focus": `better${key}`, onclick: () => prefer(turn, side, two, at, place) }, "This one is better"));
  }
  return [...made, place];
}

function pager(side, at) {
  const go = (by) => () => {
    side.at += by;
    draw(at);
  };
  const button = (name, label, by, end) => iconButton(name, label, go(by), { disabled: end, "data-focus": `${name}${at}${side.model}` });
  return el("span", { class: "pager", role: "group", "aria-label": "Tries" },
    button("left", "The try before", -1, side.at === 0),
    el("span", {}, `${side.at + 1} of ${side.tries.length}`),
    button("right", "The try after", 1, side.at === side.tries.length - 1));
}

function thumb(one, kind, at, place) {
  const messages = [...one.messages, { role: "assistant", content: one.text }];
  tell({ kind, messages }, () => (one.thumb = kind), place).then(() => {
    one.kept = place.textContent;
    draw(at);
  });
}

function prefer(turn, side, { chosen, rejected }, at, place) {
  tell({ kind: "better", prompt: shown(turn.sides[0]).messages, chosen, rejected }, () => (turn.better = chosen), place).then(() => {
    shown(side).kept = place.textContent;
    draw(at);
    ask.focus();
  });
}

function retry(at) {
  state.turns[at].better = null;
  draw(at);
  answerTurn(at);
  ask.focus();
}

// The page around it.

const isNearEnd = () => window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - NEAR;
const toEnd = () => window.scrollTo(0, document.documentElement.scrollHeight);
const enters = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

function fit(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, 260)}px`;
}

function submit() {
  const text = ask.value.trim();
  if (state.running || !text || !model()) return;
  ask.value = "";
  fit(ask);
  begin(text);
  ask.focus();
}

function pick() {
  const name = model(), base = baseOf(name), known = about(name);
  versus.hidden = !base;
  byId("temperature").placeholder = known.temperature ?? "";
  byId("tokens").placeholder = known.max_tokens ?? "";
  byId("report").replaceChildren(...(known.report ? [reportLink(known.run, "Report", { class: "button", title: `The report of the run of ${name}` })] : []));
  document.title = name ? `${name} - instil` : "instil";
  const facts = [];
  if (known.base_of) facts.push(`The model as it was before ${known.base_of} was tuned from it.`);
  else if (known.data) facts.push(`Tuned from ${known.model} on ${known.data}.`);
  const verdict = known.verdict && !known.base_of ? el("p", {}, `On held-out rows, ${known.verdict}`) : null;
  welcome.replaceChildren(el("h1", {}, "Ask ", el("bdi", {}, name)), el("p", { class: "soft" }, facts.join(" ")), verdict ?? "");
}

async function start() {
  busy(false);
  try {
    state.models = (await json("/v1/models")).data.map((one) => one.id);
    picker.replaceChildren(...state.models.map((name) => el("option", { value: name }, name)));
    pick();
    ask.focus();
    state.about = (await json("/page.json").catch(() => ({ models: {} }))).models; // the figures of a run take a moment
    pick();
  } catch (error) {
    welcome.replaceChildren(el("h1", {}, "Nothing to ask"), el("p", { class: "bad" }, error.message),
      el("button", { type: "button", class: "accent", onclick: start }, "Try again"));
    say(error.message);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.running) stop();
  else submit();
});
ask.addEventListener("keydown", (event) => {
  if (!enters(event)) return;
  event.preventDefault();
  submit();
});
ask.addEventListener("input", () => fit(ask));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.running && !document.querySelector("dialog[open]")) stop();
});
picker.addEventListener("change", pick);
versus.addEventListener("click", () => versus.setAttribute("aria-pressed", String(!beside())));
byId("settings").addEventListener("click", (event) => {
  const panel = byId("options");
  panel.hidden = !panel.hidden;
  event.currentTarget.setAttribute("aria-expanded", String(!panel.hidden));
  if (!panel.hidden) byId("system").focus();
});
byId("new").addEventListener("click", () => {
  leave();
  state.turns = [];
  draw();
  ask.focus();
  say("A new chat.");
});
start();
