"""What a made-up model says: always the same to the same request, and mostly something new."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from instil.synthesis.prompts import PASSIVE, REFLECT_ANSWER, REFLECT_INSTRUCTION, SELF_INSTRUCT
from instil.synthesis.writing import TextRequest, TextResult
from tests.faults.judge_server import JudgeServer, message_of

SYLLABLES = "ba ke lo mi nu pra sto vel dri gon hai jut wex zor qui fyl".split()


def words(seed: str, count: int) -> str:
    """Words that nobody has heard of."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(SYLLABLES, k=3)) for _ in range(count))


def reply(message: str, seed: int) -> str:
    """The reply to one request."""
    if message.startswith(SELF_INSTRUCT.text[:40]):
        task = {"instruction": f"Explain {words(message, 6)}.", "input": "", "output": f"It is {words(message, 3)}."}
        return json.dumps(task)
    if message.startswith(REFLECT_INSTRUCTION.text[:40]):
        row = json.loads(message.rstrip().splitlines()[-1])
        return json.dumps({"flaws": "vague", "instruction": f"{row['instruction']} Write one short sentence."})
    if message.startswith(REFLECT_ANSWER.text[:40]):
        row = json.loads(message.rstrip().splitlines()[-1])
        return json.dumps({"flaws": "short", "output": f"{row['output']} So it is."})
    if message.startswith(PASSIVE.text[:40]):
        row = json.loads(message.rstrip().splitlines()[-1])
        return json.dumps({"passive": f"By somebody {row['sentence']}"})
    if message.startswith("<|"):
        return f"How does one build {words(str(seed), 5)}?"
    return f"With {words(message, 4)}."


def seed_of(body: dict[str, Any]) -> int:
    """The seed of a request in either interface."""
    return int(body["seed"] if "seed" in body else body["options"]["seed"])


def telling(server: JudgeServer) -> None:
    """Let a server reply so."""
    server.say = lambda message, number: reply(message, seed_of(server.asked[number]))


class Model:
    """The same without a server; ``instead`` replaces replies by the number of the request."""

    def __init__(self, instead: dict[int, str | None] | None = None, say: Callable[[str, int], str] = reply) -> None:
        self.instead, self.say = instead or {}, say
        self.asked: list[TextRequest] = []

    def __call__(self, wanted: Sequence[TextRequest]) -> list[TextResult]:
        """Replies in order."""
        written = []
        for one in wanted:
            text = self.instead.get(len(self.asked), self.say(one.text, one.seed))
            self.asked.append(one)
            written.append(TextResult(one.row, text, "" if text is not None else "the reply is empty"))
        return written


def messages(server: JudgeServer) -> list[tuple[str, int]]:
    """What a server was asked, with the seeds."""
    return [(message_of(body), seed_of(body)) for body in server.asked]
