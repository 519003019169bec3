"""New rows: drawn by the seed alone, repetitions and what cannot be used named, and an end in sight."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instil.errors import SettingsError
from instil.records import Example
from instil.settings.asking import MakeOptions
from instil.synthesis.growing import BARREN, ROUND, GrowResult, grow, magpie, self_instruct
from instil.synthesis.prompts import SELF_INSTRUCT, USER_TURNS, user_turn
from instil.synthesis.rows import KnownTasks
from tests.synthesis.replies import Model, reply, words

SEEDS = [Example(f"Tell me about {words(f'seed {n}', 4)}.", f"It is {n}.", row=n) for n in range(12)]
TURN = USER_TURNS["chatml"]


def known(seeds: list[Example] = SEEDS, near: float = 0.9) -> KnownTasks:
    """What is not to be repeated."""
    return KnownTasks({"seeds.json": seeds}, SEEDS, near)


def instructed(model: Model, count: int, at_once: int = 2, **how: Any) -> GrowResult:
    """Rows by self-instruct."""
    options = MakeOptions(**how)
    return grow(self_instruct(SEEDS, model, "me", options), count, options, known(), at_once)


def asked_for(model: Model, count: int, at_once: int = 2, **how: Any) -> GrowResult:
    """Rows by Magpie."""
    options, tasks = MakeOptions(**how), known()
    return grow(magpie(TURN, tasks, model, "me", options), count, options, tasks, at_once)


def task(instruction: str, output: str = "Fine.", given: str = "") -> str:
    """A reply of self-instruct."""
    return json.dumps({"instruction": instruction, "input": given, "output": output})


def test_rows_come_with_where_they_are_from() -> None:
    model = Model()
    grown = instructed(model, 3)
    assert len(grown.rows) == 3
    assert grown.requests == 3
    assert not grown.rejected
    for number, row in enumerate(grown.rows):
        origin = row.provenance
        assert (origin["way"], origin["made_by"], origin["seed"]) == ("self-instruct", "me", 123 + number)
        assert origin["prompt"] == SELF_INSTRUCT.id
        assert len(set(origin["from"])) == 3
        shown = [json.loads(line) for line in model.asked[number].text.splitlines() if line.startswith('{"instr')]
        assert [one["instruction"] for one in shown] == [SEEDS[at].instruction for at in origin["from"]]
        assert row.as_json()["output"] == json.loads(reply(model.asked[number].text, 0))["output"]
    assert len({tuple(row.provenance["from"]) for row in grown.rows}) == 3  # drawn anew each time


def test_after_a_round_made_rows_are_shown_too_and_say_so() -> None:
    grown = instructed(Model(), ROUND + 4)
    later = [row.provenance["seed"] - 123 >= ROUND for row in grown.rows]
    assert ["from_made" in row.provenance for row in grown.rows] == later
    assert any(later)
    drawn = [row.provenance["from_made"][0] for row in grown.rows if "from_made" in row.provenance]
    assert all(0 <= number < ROUND for number in drawn)


@pytest.mark.parametrize("how", [instructed, asked_for])
def test_how_many_are_asked_at_once_changes_nothing(how: Any) -> None:
    def say(message: str, seed: int) -> str:  # some repeat, some are garbage
        if message.startswith("You invent") and hash_of(message) % 3 == 0:
            return task("Explain what everybody explains.") if hash_of(message) % 2 else "no JSON"
        return reply(message, seed % 20)

    def hash_of(message: str) -> int:
        return sum(message.encode())

    found = [how(Model(say=say), 40, at_once, attempts=2.0) for at_once in (1, 2, 7, 64)]
    assert len({json.dumps([row.as_json() for row in one.rows]) for one in found}) == 1
    assert len({json.dumps([one.as_json() for one in grown.rejected]) for grown in found}) == 1
    assert len({(one.requests, one.ended) for one in found}) == 1
    assert found[0].rejected


@pytest.mark.parametrize("how", [instructed, asked_for])
def test_more_rows_begin_with_the_same_ones(how: Any) -> None:
    few, many = how(Model(), 35), how(Model(), 50)
    assert [row.as_json() for row in few.rows] == [row.as_json() for row in many.rows[:35]]


def test_another_seed_draws_otherwise() -> None:
    one, other = instructed(Model(), 2), instructed(Model(), 2, seed=124)
    assert one.rows[0].provenance["from"] != other.rows[0].provenance["from"]


@pytest.mark.parametrize(("said", "reason"), [
    (None, "the reply is empty"),
    ("Here is a task: sing.", "the reply is not JSON"),
    ("[1]", "the reply is JSON, but no object"),
    ('{"instruction": "Explain the sea to me."}', "the reply has no 'input'"),
    ('{"instruction": "Explain the sea to me.", "input": "", "output": 5}', "'output' of the reply is no text"),
    ('{"instruction": "Explain \\ud800 the sea.", "input": "", "output": "x"}', "cannot be written down"),
    (task("Sing."), "the instruction is too short"),
    (task("Explain. " * 400), "the instruction has 3,599 characters"),
    (task("Describe the attached photo in a sentence."), "something that a text cannot hold"),
    (task("Explain the sea to me.", ""), "the answer is empty"),
    (task("Explain the sea to me.", "I'm sorry, but I cannot help."), "the answer is a refusal"),
    (task("Explain the sea to me.", "Explain the SEA to me"), "the answer repeats the task"),
    (task("Explain the sea to me.<|im_end|>"), "marks of a chat template"),
    (task(SEEDS[5].instruction.upper()), "it repeats row 5 of seeds.json"),
    (task(SEEDS[5].instruction.replace(".", " too")), "it is nearly row 5 of seeds.json"),
])  # fmt: skip
def test_what_cannot_be_used_is_named_and_another_is_asked_for(said: str | None, reason: str) -> None:
    grown = instructed(Model({1: said}), 3)
    assert len(grown.rows) == 3
    assert grown.requests == 4
    (left,) = grown.rejected
    assert left.number == 1
    assert reason in left.reason


def test_an_input_that_says_there_is_none_is_none() -> None:
    grown = instructed(Model({0: task("Explain the sea to me.", given="<noinput>")}), 1)
    assert grown.rows[0].example.input == ""
    assert instructed(Model({0: f"```json\n{task('Explain the sea.', given='3 km')}\n```"}), 1).rows[0].example.input


def test_repetitions_of_made_rows_are_named_and_it_ends_when_nothing_new_comes() -> None:
    grown = instructed(Model(say=lambda message, seed: task("Explain the sea to me.")), 50)
    assert len(grown.rows) == 1
    assert grown.requests == 1 + BARREN
    assert grown.ended == f"the last {BARREN} requests brought nothing new"
    assert {left.reason for left in grown.rejected} == {"it repeats made row 0"}


def test_only_requests_in_a_row_end_it() -> None:
    grown = instructed(Model(dict.fromkeys([*range(30), *range(31, 60)], "")), 2, attempts=99.0)
    assert (len(grown.rows), grown.requests, grown.ended) == (2, 61, "")


def test_it_ends_when_the_requests_are_used_up() -> None:
    grown = instructed(Model(dict.fromkeys(range(0, 100, 2), "")), 10, attempts=1.5)
    assert grown.requests == 15
    assert len(grown.rows) == 7
    assert "15 requests" in grown.ended


def test_magpie_asks_with_the_beginning_of_a_turn_and_then_for_the_answer() -> None:
    model = Model({0: "How tall is the tower?<|im_end|>\n<|im_start|>assistant\nTall."})
    grown = asked_for(model, 1)
    begun, answer = model.asked
    assert (begun.raw, begun.text, begun.stop[0]) == (True, "<|im_start|>user\n", "<|im_end|>")
    assert (answer.raw, answer.text) == (False, "How tall is the tower?")
    assert grown.rows[0].example.instruction == "How tall is the tower?"
    assert grown.rows[0].example.output == reply("How tall is the tower?", 0)
    assert grown.rows[0].provenance["prompt"] == TURN.id
    assert grown.rows[0].provenance["seed"] == 123


@pytest.mark.parametrize("said", [None, "Hi", SEEDS[2].instruction, "Look at this <|tool|> please."])
def test_magpie_does_not_answer_what_is_no_new_task(said: str | None) -> None:
    model = Model({0: said})
    grown = asked_for(model, 1, at_once=1)
    assert [one.raw for one in model.asked] == [True, True, False]
    assert (len(grown.rejected), len(grown.rows)) == (1, 1)


@pytest.mark.parametrize(("model", "name"), [
    ("ollama:llama3", "llama3"), ("llamacpp:Meta-Llama-3-8B.gguf", "llama3"), ("ollama:qwen3:4b", "chatml"),
    ("llamacpp:smollm2-135m", "chatml"), ("http://127.0.0.1/v1#gemma-3-4b", "gemma"), ("ollama:mistral", "mistral"),
])  # fmt: skip
def test_a_models_name_tells_how_its_chats_begin(model: str, name: str) -> None:
    assert user_turn("auto", model).name == name
    assert user_turn("phi3", model).name == "phi3"


def test_a_name_that_does_not_tell_is_an_error_with_the_choices() -> None:
    with pytest.raises(SettingsError, match="--chat-template: llama3, chatml, gemma, phi3, mistral"):
        user_turn("auto", "http://127.0.0.1:8080/v1")
    with pytest.raises(SettingsError, match="did you mean chatml"):
        user_turn("chatlm", "ollama:llama3")
