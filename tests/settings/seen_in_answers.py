"""Settings of generation, each with what is seen of it in the answers of a tiny model."""

from __future__ import annotations

from functools import partial

from instil.data.encoding import encode_prompt
from instil.data.sources import examples_from
from tests.settings.world import PROMPTS, SAID, Table, World, seen_in, watched

ANSWERS: Table = {}
sees = partial(seen_in, ANSWERS)
WARM = "generate.temperature=100"


def is_greedy(world: World, *settings: str) -> None:
    """At a temperature at which nothing is certain, it is these settings that leave nothing to chance."""
    assert world.ids(WARM) != world.ids()
    assert world.ids(WARM, *settings) == world.ids()


@sees("generate.max_new_tokens=3")
def max_new_tokens(world: World) -> None:
    assert world.ids("generate.max_new_tokens=3") == [ids[:3] for ids in world.ids()]
    assert {len(ids) for ids in world.ids()} == {8}


@sees("generate.temperature=100")
def temperature(world: World) -> None:
    assert world.ids(WARM) != world.ids()
    assert world.ids("generate.temperature=1e-6") == world.ids()


@sees("generate.top_k=1")
def top_k(world: World) -> None:
    is_greedy(world, "generate.top_k=1")


@sees("generate.top_p=1e-9")
def top_p(world: World) -> None:
    is_greedy(world, "generate.top_p=1e-9")


@sees("generate.min_p=1.0")
def min_p(world: World) -> None:
    is_greedy(world, "generate.min_p=1.0")


FRESH = "generate.repetition_penalty=100"


@sees(FRESH)
def repetition_penalty(world: World) -> None:
    """What stands in the prompt or in the answer is not said again, where otherwise it always is."""
    assistant = world.assistant
    examples = examples_from(PROMPTS, need_output=False).examples
    prompts = [set(encode_prompt(one, assistant.template, assistant.tokenizer)) for one in examples]
    (said,) = assistant.tokenizer.encode(SAID)
    assert [said in prompt for prompt in prompts] == [False, True]
    assert world.ids() == [(said,) * 8] * 2
    first, second = world.ids(FRESH)
    assert (first[0], first.count(said)) == (said, 1)
    for prompt, ids in zip(prompts, (first, second), strict=True):
        assert len(ids) == len(set(ids)) == 8
        assert not prompt & set(ids)


@sees("generate.stop=over")
def stop(world: World) -> None:
    whole, stopped = (world.answers(FRESH, *more) for more in ((), ("generate.stop=over",)))
    for free, one in zip(whole, stopped, strict=True):
        assert "over" in free.text
        assert one.text == free.text.partition("over")[0].strip()
        assert (free.finish, one.finish) == ("length", "stop")


@sees("generate.header=false")
def header(world: World) -> None:
    header = world.assistant.tokenizer.encode(world.assistant.template.header)
    longer, shorter = world.answers(), world.answers("generate.header=false")
    assert [one.prompt_tokens - len(header) for one in longer] == [one.prompt_tokens for one in shorter]


@sees("generate.batch_size=1")
def batch_size(world: World) -> None:
    def at_once(*settings: str) -> int:
        with watched() as seen:
            assert world.ids(*settings) == world.ids()
        return max(len(set(one.batch.rows_N.tolist())) for one in seen.passes)

    assert at_once() == 2
    assert world.ids("generate.batch_size=1") == world.ids()
    with watched() as seen:
        world.ids("generate.batch_size=1")
    assert {len(set(one.batch.rows_N.tolist())) for one in seen.passes} == {1}


@sees("generate.seed=7")
def seed(world: World) -> None:
    assert world.ids(WARM) == world.ids(WARM)
    assert world.ids(WARM, "generate.seed=7") != world.ids(WARM)
    assert world.ids("generate.seed=7") == world.ids()


@sees("generate.before=same")
def before(world: World) -> None:
    def asked(*settings: str) -> set[str]:
        made = world.run("generate.max_new_tokens=3", *settings, verb="run", model=world.talker)
        return {file.name for file in (made.path / "responses").iterdir()}

    assert {"base.json", "tuned.json"} < asked("data.template=alpaca")
    assert asked("data.template=alpaca", "generate.before=same") == {"base.json", "tuned.json"}


@sees("keep.measure=false")
def measure(world: World) -> None:
    there = [
        (world.run("generate.max_new_tokens=3", *more, verb="run").path / "keep.json").exists()
        for more in ((), ("keep.measure=false",))
    ]
    assert there == [True, False]


@sees("generate.max_rows=2")
def max_rows(world: World) -> None:
    every, some = (world.run("generate.max_new_tokens=3", *more, verb="run") for more in ((), ("generate.max_rows=2",)))
    four, two = (made.read("responses/tuned.json") for made in (every, some))
    assert [row["instruction"] for row in two] == [four[0]["instruction"], four[2]["instruction"]]
