// A conversation: what was asked, and what each model answered in how many tries. No element of the page is known here.

export const WARM = 0.8; // temperature of another try, where answers are always the likeliest

export const newTurn = (asked, models) => ({ asked, better: null, sides: models.map((model) => ({ model, tries: [], at: -1 })) });
export const newTry = () => ({ text: "", state: "waiting", note: "", thumb: null });

export const shown = (side) => side.tries[side.at];
export const isOver = (one) => one !== undefined && one.state !== "waiting" && one.state !== "streaming";

// What counts as said by a model in a turn: the better of two, where one was chosen; else its own answer. In a turn that
// it was not asked in, the first model's answer stands.
function said(turn, model) {
  if (turn.better !== null) return turn.better;
  const side = turn.sides.find((one) => one.model === model) ?? turn.sides[0];
  return shown(side)?.text ?? "";
}

// The conversation up to a question, as one model knows it; a question that was answered with nothing is left out.
export function prompt(turns, at, model, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, at)) {
    const text = said(turn, model);
    if (text.trim()) messages.push({ role: "user", content: turn.asked }, { role: "assistant", content: text });
  }
  return [...messages, { role: "user", content: turns[at].asked }];
}

// Two finished answers to the last question of a turn of which the one that is shown can be said to be better.
export function choice(turn, side) {
  const own = shown(side);
  if (turn.better !== null || !isOver(own) || !own.text.trim()) return null;
  const beside = turn.sides.find((one) => one !== side);
  const other = beside ? shown(beside) : side.tries[side.at === side.tries.length - 1 ? side.at - 1 : side.tries.length - 1];
  if (!isOver(other) || !other.text.trim() || other.text === own.text) return null;
  return { chosen: own.text, rejected: other.text };
}

// What a request asks for. Another try of the same question is warmer than the likeliest answer, and has its own seed.
export function wanted(model, messages, options, tries) {
  const body = { model, messages, stream: true };
  if (options.maxTokens !== null) body.max_tokens = options.maxTokens;
  if (options.temperature !== null) body.temperature = options.temperature;
  if (tries > 0) {
    body.temperature = options.temperature || options.usual || WARM;
    body.seed = 123 + tries;
  }
  return body;
}
