"""Settings of judging and of making data, each with what is seen of it at the server that is asked."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest

from instil.evaluate import embeddings as encoder
from instil.evaluate.prompts import BOOK_INTEGER, RUBRIC
from tests.faults.judge_server import JudgeServer, message_of
from tests.settings.world import Ended, Table, World, seen_in
from tests.synthesis.replies import reply, seed_of

REQUESTS: Table = {}
sees = partial(seen_in, REQUESTS)
BOTH = ("score", "make")
Asked = tuple[Ended, JudgeServer]


def asked(world: World, section: str, *settings: str, questions: int = 3, **how: Any) -> Asked:
    """Some questions, which a judge answers with a 4 and a writer with new rows; ``before`` is called ahead of that."""
    before: Callable[[], None] = how.pop("before", lambda: None)
    chosen = [f"{section}.{one}" for one in settings]

    def judge(message: str, number: int) -> str:
        before()
        return '{"score": 4}'

    def telling(server: JudgeServer) -> None:
        def say(message: str, number: int) -> str:
            before()
            return reply(message, seed_of(server.asked[number]))

        server.say = say

    if section == "score":
        return world.scored(*chosen, rows=questions, say=judge, **how)
    ended, server, _ = world.made(*chosen, count=questions, telling=telling, **how)
    return ended, server


def of_the_body(section: str, setting: str, value: object, default: object, ollama_name: str = "") -> None:
    """An entry for a setting that is sent as it is, in both interfaces."""

    @sees(f"{section}.{setting}={value}")
    def sent(world: World) -> None:
        for given, wanted in (((f"{setting}={value}",), value), ((), default)):
            _, server = asked(world, section, *given)
            assert {body[setting] for body in server.asked} == {wanted}
            _, server = asked(world, section, *given, ollama=True)
            assert {body["options"][ollama_name or setting] for body in server.asked} == {wanted}


for section, usual in (("score", 0.0), ("make", 0.7)):
    of_the_body(section, "temperature", 0.5, usual)
for section, most in (("score", 512), ("make", 1024)):
    of_the_body(section, "max_tokens", 77, most, "num_predict")


def of_both(section: str) -> None:
    """Entries for what judges and writers have in common."""

    @sees(f"{section}.num_ctx=4096")
    def num_ctx(world: World) -> None:
        for given, wanted in ((("num_ctx=4096",), 4096), ((), 2048)):  # what these requests need
            _, server = asked(world, section, *given, ollama=True)
            assert {body["options"]["num_ctx"] for body in server.asked} == {wanted}

    @sees(f"{section}.concurrency=3")
    def concurrency(world: World) -> None:
        together = threading.Barrier(3)
        ended, _ = asked(world, section, "concurrency=3", ollama=True, before=lambda: together.wait(10) and None)
        assert ended.code == 0  # every request waited for two others
        under_way, most = [0], [0]

        def one() -> None:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
            time.sleep(0.02)
            under_way[0] -= 1

        asked(world, section, ollama=True, before=one)
        assert most == [1]  # as suits that server

    @sees(f"{section}.tries=2")
    def tries(world: World) -> None:
        for given, wanted in ((("tries=2",), 2), ((), 4)):
            ended, server = asked(world, section, *given, questions=1, always="status 503 busy")
            assert ended.code == 4
            assert len(server.asked) == wanted

    @sees(f"{section}.timeout=1.5")
    def timeout(world: World) -> None:
        # long enough for the first look at the server on a busy machine, shorter than its answer
        late = {"questions": 1, "before": lambda: time.sleep(3)}
        ended, _ = asked(world, section, "timeout=1.5", "tries=1", **late)
        assert ended.code == 4
        assert "within 1.5 s" in ended.said
        assert asked(world, section, "tries=1", **late)[0].code == 0


for section in BOTH:
    of_both(section)


# Judging


@sees("score.prompt=book")
def prompt(world: World) -> None:
    _, server = world.scored("score.prompt=book", say=lambda message, number: "80")
    assert all(message.endswith(BOOK_INTEGER[-40:]) for message in server.messages())
    _, server = world.scored(say=lambda message, number: '{"score": 4}')
    assert all(message.startswith(RUBRIC) for message in server.messages())


@sees("score.repeats=3")
def repeats(world: World) -> None:
    _, server = asked(world, "score", "repeats=3", questions=2)
    assert sorted(seed_of(body) for body in server.asked) == [123, 123, 124, 124, 125, 125]
    assert len(set(server.messages())) == 2
    _, server = asked(world, "score", questions=2)
    assert len(server.asked) == 2


@sees("score.seed=7")
def score_seed(world: World) -> None:
    for given, wanted in ((("seed=7",), 7), ((), 123)):
        _, server = asked(world, "score", *given)
        assert {seed_of(body) for body in server.asked} == {wanted}


@sees("score.weighted=true")
def weighted(world: World) -> None:
    top = [{"token": token, "logprob": math.log(share)} for token, share in (("4", 0.75), ("2", 0.25))]
    how = {
        "logprobs": lambda said: [{"token": "4", "top_logprobs": top}],
        "say": lambda message, number: '{"score": 4}',
    }
    means = [world.scored(*given, **how)[0].json["scores"] for given in (("score.weighted=true",), ())]
    assert [next(iter(one.values()))["score"] for one in means] == pytest.approx([100 * 2.5 / 4, 100 * 3 / 4])


@sees("score.embeddings=true")
def embeddings(world: World) -> None:
    plain, _ = world.scored(judge="offline")
    assert "embedding" not in plain.out
    with_meaning, _ = world.scored("score.embeddings=true", judge="offline")
    if find_spec(encoder.MODULE) is None:
        assert encoder.INSTALL in with_meaning.said
        return
    (found,) = with_meaning.json["scores"].values()
    assert 0 < found.get("embedding", 0) <= 1


@sees("score.min_coverage=0.5")
def min_coverage(world: World) -> None:
    how = {"say": lambda message, number: '{"score": 4}' if "Say 0." in message else "no idea", "rows": 2}
    too_few, _ = world.scored(**how)
    assert too_few.code == 1
    assert "only 1 of 2 rows has a score" in too_few.said
    assert world.scored("score.min_coverage=0.5", **how)[0].code == 0


# Making data


@sees("make.seed=7")
def make_seed(world: World) -> None:
    bodies = []
    for given, first in ((("seed=7",), 7), ((), 123)):
        _, server = asked(world, "make", *given)
        assert sorted(seed_of(body) for body in server.asked) == [first, first + 1, first + 2]
        bodies.append(sorted(server.messages()))
    assert bodies[0] != bodies[1]  # other rows are shown


@sees("make.shown=1")
def shown(world: World) -> None:
    for given, wanted in ((("shown=1",), 1), ((), 3)):
        _, server = asked(world, "make", *given)
        assert {message.count("Double the number") for message in server.messages()} == {wanted}


def telling(task: Callable[[int], str]) -> Callable[[JudgeServer], None]:
    """A writer that says these tasks."""

    def tell(server: JudgeServer) -> None:
        def say(message: str, number: int) -> str:
            assert message_of(server.asked[number]) == message
            return json.dumps({"instruction": task(number), "input": "", "output": f"Certainly, number {number}."})

        server.say = say

    return tell


@sees("make.near=0.7")
def near(world: World) -> None:
    tasks = [
        "Explain why rain falls from clouds.",
        "Explain why snow falls from clouds.",
        *["List nine prime numbers."] * 9,
    ]
    for given, kept in (((), tasks[:2]), (("make.near=0.7",), [tasks[0], tasks[2]])):
        _, _, rows = world.made(*given, "make.concurrency=1", telling=telling(lambda number: tasks[number]))
        assert [row["instruction"] for row in rows] == kept


@sees("make.attempts=1.5")
def attempts(world: World) -> None:
    for given, wanted in ((("make.attempts=1.5",), 3), ((), 10)):
        ended, server, rows = world.made(*given, telling=telling(lambda number: "Say the same thing once more."))
        assert len(server.asked) == wanted
        assert len(rows) == 1
        assert ended.code == 1
