// The runs: a list that follows what is written in their folders, with the losses of each drawn as they come.

import { events, json, reportLink, request } from "./api.js";
import { Chart, said, whole } from "./chart.js";
import { byId, el, say } from "./dom.js";

const STATES = { running: "training", stopped: "stopped", finished: "done", failed: "failed" };
const shown = new Map(); // by name: {run, element, chart}
const list = byId("list");

const number = (value) => (value === 0 || Math.abs(value) >= 0.1 ? value.toFixed(1) : value.toPrecision(1));
const range = (one) => (one === null ? "-" : one.low === null ? number(one.mean) : `${number(one.mean)} [${number(one.low)}, ${number(one.high)}]`);

function facts(run) {
  const lines = [["model", run.model], ["data", run.data], ["method", [run.method, run.objective === "sft" ? "" : run.objective].filter(Boolean).join(", ")]];
  if (run.step !== null) lines.push(["steps", run.steps && run.steps !== run.step ? `${whole(run.step)} of ${whole(run.steps)}` : whole(run.step)]);
  const losses = [["training", run.train_loss], ["validation", run.val_loss]].filter(([, loss]) => loss !== null);
  if (losses.length) lines.push(["last losses", losses.map(([of, loss]) => `${said(loss)} ${of}`).join(", ")]);
  if (run.created) lines.push(["begun", new Date(run.created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })]);
  return el("dl", { class: "facts" }, ...lines.filter(([, text]) => text).map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, el("bdi", {}, text)))));
}

function scores(run) {
  if (!run.scores.length) return null;
  return el("div", { class: "scores" }, ...run.scores.map((one) => el("div", { class: "score" },
    el("span", { class: "soft small" }, one.judge),
    el("span", { class: "change" }, range(one.before), el("span", { class: "sr" }, " before, "), el("span", { "aria-hidden": "true" }, " \u2192 "), el("b", {}, range(one.after)), el("span", { class: "sr" }, " after")),
    el("span", { class: `tag ${one.outcome === "better" || one.outcome === "worse" ? one.outcome : ""}` }, one.outcome))),
    el("p", { class: "small soft" }, run.scores[0].sentence[0].toUpperCase() + run.scores[0].sentence.slice(1)));
}

function fill(one) {
  const { run } = one;
  const tag = el("span", { class: `state ${run.state}` }, STATES[run.state]);
  const links = el("div", { class: "links" });
  if (run.served_as) links.append(el("a", { class: "button", href: "/" }, "Chat"));
  if (run.report) links.append(reportLink(run.name, "Report", { class: "button" }));
  links.append(el("button", { type: "button", "aria-expanded": String(one.chart !== null), onclick: () => toggle(one), "data-curve": run.name }, "Losses"));
  const progress = run.state === "running" && run.steps
    ? el("progress", { max: run.steps, value: run.step ?? 0, "aria-label": `Steps of ${run.name}` }) : null;
  const parts = [
    el("div", { class: "head" }, el("h2", {}, el("bdi", {}, run.name)), tag, links), progress, facts(run), scores(run),
    run.why ? el("p", { class: `small ${run.state === "failed" ? "bad" : "soft"}` }, run.why) : null,
    run.problem ? el("p", { class: "small bad" }, run.problem) : null, one.chart?.element ?? null,
  ];
  const focused = one.element.contains(document.activeElement) && document.activeElement.dataset.curve;
  one.element.replaceChildren(...parts.filter(Boolean));
  if (focused) one.element.querySelector("[data-curve]").focus();
}

async function toggle(one) {
  if (one.chart) one.chart = null;
  else await open(one);
  fill(one);
}

async function open(one) {
  const chart = (one.chart = new Chart(one.run.name));
  fill(one);
  try {
    chart.add(await json(`/runs/${one.run.name.split("/").map(encodeURIComponent).join("/")}/curve`));
  } catch (error) {
    say(error.message);
  }
}

function take(run, isNew = true) {
  const known = shown.get(run.name);
  if (known) {
    if (known.run.state !== run.state) say(`The run ${run.name} is ${STATES[run.state]}.`);
    known.run = { served_as: known.run.served_as, ...run };
    fill(known);
    return;
  }
  const one = { run, element: el("section", { class: "run", "aria-label": `Run ${run.name}` }), chart: null };
  shown.set(run.name, one);
  fill(one);
  if (isNew) list.prepend(one.element);
  else list.append(one.element);
  if (run.state === "running") open(one);
}

function change(told) {
  if (told.kind === "run") take(told.run);
  else if (told.kind === "gone") {
    shown.get(told.name)?.element.remove();
    shown.delete(told.name);
  } else {
    const one = shown.get(told.name);
    if (!one) return;
    one.chart?.add(told);
    const { train, val } = told;
    one.run = { ...one.run, step: told.step, train_loss: train.at(-1)?.[1] ?? one.run.train_loss, val_loss: val.at(-1)?.[1] ?? one.run.val_loss };
    fill(one);
  }
  empty();
}

function empty() {
  byId("where").hidden = shown.size > 0;
  byId("where").textContent = "No runs yet. instil run DATA --out runs/NAME makes one, and it shows here while it trains.";
}

async function load() {
  const { runs } = await json("/runs.json");
  const order = { running: 0, finished: 1, stopped: 1, failed: 1 };
  for (const name of shown.keys()) if (!runs.some((run) => run.name === name)) change({ kind: "gone", name });
  for (const run of runs.sort((a, b) => order[a.state] - order[b.state])) take(run, false);
  for (const one of shown.values()) if (one.chart && one.run.state === "running") await open(one);
  list.setAttribute("aria-busy", "false");
  empty();
}

async function follow() {
  for (let wait = 1; ; wait = Math.min(30, wait * 2)) {
    try {
      const stream = await request("/runs/events");
      for await (const { event, data } of events(stream)) {
        if (event === "hello") {
          await load();
          live(true);
          wait = 1;
        } else change(JSON.parse(data));
      }
    } catch (error) {
      live(false, error.message);
      if (!shown.size) await load().catch(() => {});
    }
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
  }
}

function live(on, why = "") {
  const place = byId("live");
  place.className = `small ${on ? "soft live" : "soft"}`;
  place.textContent = on ? "live" : "not live";
  place.title = on ? "Changes show as they come" : why;
}

follow();
