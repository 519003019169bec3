// Every endpoint and field of this server, made of its own description.

import { json } from "./api.js";
import { byId, el, say } from "./dom.js";

const ORDER = ["OpenAI", "Ollama", "server"];

function kind(schema) {
  if (!schema) return "";
  if (schema.anyOf) return [...new Set(schema.anyOf.map(kind))].filter((name) => name !== "null").join(" or ");
  if (schema.$ref) return "object";
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items) || "anything"}`;
  return schema.type ?? "anything";
}

function bounds(schema) {
  const one = schema.anyOf?.find((part) => part.type !== "null") ?? schema;
  const told = [];
  if (one.minimum !== undefined) told.push(`from ${one.minimum}`);
  if (one.exclusiveMinimum !== undefined) told.push(`above ${one.exclusiveMinimum}`);
  if (one.maximum !== undefined) told.push(`to ${one.maximum}`);
  if (one.exclusiveMaximum !== undefined) told.push(`below ${one.exclusiveMaximum}`);
  if (schema.default !== undefined && schema.default !== null) told.push(`default ${JSON.stringify(schema.default)}`);
  if (schema.description) told.push(schema.description);
  return told.join("; ");
}

function fields(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, one]) => el("tr", {},
    el("th", { scope: "row" }, el("code", {}, name), schema.required?.includes(name) ? " (wanted)" : ""),
    el("td", {}, kind(one)), el("td", { class: "soft" }, bounds(one))));
  const head = el("thead", {}, el("tr", {}, ...["Field", "What it is", ""].map((name) => el("th", { scope: "col" }, name))));
  return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Fields" }, el("table", {}, head, el("tbody", {}, ...rows)));
}

function endpoint(path, method, operation, schemas) {
  const name = operation.requestBody?.content?.["application/json"]?.schema?.$ref?.split("/").pop();
  const head = [el("code", {}, `${method.toUpperCase()} ${path}`), " ", el("span", { class: "soft" }, operation.summary ?? "")];
  return name
    ? el("details", {}, el("summary", {}, ...head), fields(schemas[name]))
    : el("p", {}, ...head);
}

try {
  const found = await json("/openapi.json");
  const groups = new Map(ORDER.map((tag) => [tag, []]));
  for (const [path, methods] of Object.entries(found.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "server";
      groups.set(tag, [...(groups.get(tag) ?? []), endpoint(path, method, operation, found.components?.schemas ?? {})]);
    }
  }
  byId("list").replaceChildren(...[...groups].flatMap(([tag, parts]) => [el("h2", {}, tag === "server" ? "The server itself" : tag), ...parts]));
} catch (error) {
  byId("list").replaceChildren(el("p", { class: "bad" }, error.message));
  say(error.message);
}
byId("list").setAttribute("aria-busy", "false");
