"""What a model is asked in order to make rows. Each prompt is known by the hash of its text and schema.

Rows that a prompt shows stand in it as JSON, and replies come as JSON: a schema holds servers to it that can be held,
and `instil.synthesis.reading` is strict with the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instil.data.shapes.texts import text_problem
from instil.errors import SettingsError, did_you_mean
from instil.records import Example


@dataclass(frozen=True, slots=True)
class SynthesisPrompt:
    """A way of asking for parts of a row; the reply is a JSON object with these ``fields``, all texts."""

    name: str
    text: str
    fields: tuple[str, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """The reply's form, for servers that can be held to one."""
        return {
            "type": "object",
            "properties": {name: {"type": "string"} for name in self.fields},
            "required": list(self.fields),
            "additionalProperties": False,
        }

    @property
    def id(self) -> str:
        """Name and the first 16 hex digits of the SHA-256 of all that shapes the prompt."""
        shape = json.dumps([self.text, self.schema], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(shape.encode()).hexdigest()[:16]}"

    def ask(self, shown: Sequence[dict[str, str]]) -> str:
        """The whole message, with what it shows one JSON object a line."""
        return self.text + "\n".join(json.dumps(one, ensure_ascii=False) for one in shown) + "\n"


def shown_row(example: Example, *parts: str) -> dict[str, str]:
    """A row, or these parts of it, as prompts show it."""
    row = example.as_json() | {"input": example.about}
    return {name: row[name] for name in parts or row}


SELF_INSTRUCT = SynthesisPrompt(
    "self-instruct",
    """\
You invent tasks from which a language model learns to follow instructions.

Invent one task that none of the tasks at the end resembles: another subject, and another thing to do. Vary the verb, \
the length and the form of the answer. Somebody who has nothing but the task's text must be able to do it, so it needs \
no picture, sound, file or web page. What you state must be true.

"instruction" says what to do, in one to three sentences. "input" holds the text, list or figures that the instruction \
is about, written out in full; it is empty if the instruction needs none. "output" is a right and complete answer, \
without remarks about it.

Reply with one JSON object and nothing else: {"instruction": "...", "input": "...", "output": "..."}

Tasks that exist:
""",
    ("instruction", "input", "output"),
)

REFLECT_INSTRUCTION = SynthesisPrompt(
    "reflect-instruction",
    """\
You edit tasks from which a language model learns to follow instructions.

First say briefly, under "flaws", what makes the instruction of the task at the end unclear, vague, too easy or \
impossible to do; an instruction may also be good as it is. Then write under "instruction" the better instruction. It \
asks for the same kind of thing about the same subject, and it still fits the task's input, which stays as it is and \
must not be repeated. Do not answer the task.

Reply with one JSON object and nothing else: {"flaws": "...", "instruction": "..."}

The task:
""",
    ("flaws", "instruction"),
)

REFLECT_ANSWER = SynthesisPrompt(
    "reflect-answer",
    """\
You edit answers from which a language model learns to follow instructions.

First say briefly, under "flaws", where the answer ("output") of the task at the end is wrong, incomplete, unclear or \
not in the form that the instruction asks for; an answer may also be good as it is. Then write under "output" the \
whole better answer, as the user shall read it, without remarks about the old one.

Reply with one JSON object and nothing else: {"flaws": "...", "output": "..."}

The task:
""",
    ("flaws", "output"),
)

PASSIVE = SynthesisPrompt(
    "passive",
    """\
Put the sentence at the end into the passive voice. Keep its meaning, its tense and all its details, and add nothing. \
Where that cannot be done (no verb with an object, already passive, no sentence), reply with an empty text.

Reply with one JSON object and nothing else: {"passive": "..."}

The sentence:
""",
    ("passive",),
)

PASSIVE_TASKS = (
    "Rewrite the sentence in the passive voice.",
    "Change this sentence from the active to the passive voice.",
    "Convert the active sentence to passive.",
    "Put the following sentence into the passive voice.",
)


@dataclass(frozen=True, slots=True)
class UserTurn:
    """How a chat begins up to the place where the user speaks, and what ends that.

    The token that begins every text is left out: servers put it there themselves.
    """

    name: str
    text: str
    stop: tuple[str, ...]
    models: tuple[str, ...]  # parts of names of models that are tuned so

    @property
    def id(self) -> str:
        """As a prompt's."""
        shape = json.dumps([self.text, self.stop])
        return f"magpie-{self.name}-{hashlib.sha256(shape.encode()).hexdigest()[:16]}"


USER_TURNS = {
    turn.name: turn
    for turn in (
        UserTurn(
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            ("<|eot_id|>", "<|start_header_id|>", "<|end_of_text|>"),
            ("llama-3", "llama3"),
        ),
        UserTurn(
            "chatml",
            "<|im_start|>user\n",
            ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
            ("chatml", "qwen", "smollm", "hermes", "yi-", "internlm"),
        ),
        UserTurn("gemma", "<start_of_turn>user\n", ("<end_of_turn>", "<start_of_turn>", "<eos>"), ("gemma",)),
        UserTurn("phi3", "<|user|>\n", ("<|end|>", "<|assistant|>", "<|endoftext|>"), ("phi-3", "phi3")),
        UserTurn("mistral", "[INST]", ("[/INST]", "</s>"), ("mistral", "mixtral")),
    )
}


def user_turn(name: str, model: str) -> UserTurn:
    """The beginning of a chat by its name, or (``auto``) by the model's.

    >>> user_turn("auto", "ollama:llama3:8b").name, user_turn("auto", "llamacpp:Qwen2.5-7B.gguf").name
    ('llama3', 'chatml')

    Raises:
        SettingsError: there is none of that name, or the model's name does not tell.
    """
    if name != "auto":
        if name not in USER_TURNS:
            known = f"known: auto, {', '.join(USER_TURNS)}{did_you_mean(name, USER_TURNS)}"
            raise SettingsError(f"no chat template named {name!r}; {known}")
        return USER_TURNS[name]
    low = model.lower()
    for turn in USER_TURNS.values():
        if any(part in low for part in turn.models):
            return turn
    raise SettingsError(
        f"{model} does not tell by its name how its chats begin; say it with --chat-template: {', '.join(USER_TURNS)}"
    )


def is_text(value: Any) -> bool:
    """Whether a field of a reply is text that a row may hold; it may be empty."""
    return value == "" or text_problem(value) in (None, "is empty")
