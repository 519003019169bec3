"""What a model thought is no part of what it says, in every spelling; a text is whole, or it is none."""

from __future__ import annotations

import pytest

from instil.ask.client import ModelRequest, Reply
from instil.ask.thoughts import begins_with_thought, spoken
from instil.evaluate.parsing import read_score
from instil.synthesis.writing import read_text

SPELLINGS = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"), ("<Think>", "</THINK>"), ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"), ("<thinking>", "</thinking>"), ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"), ("[think]", "[/think]"), ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|think_start|>", "<|think_end|>"), ("<|thinking|>", "</|thinking|>"), ("<|think|>", "<|/think|>"),
    ("<unused94>thought\n", "<unused95>"), ("[unused16]", "[unused17]"), ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought\n", "<channel|>"), ('<think type="long">', "</think>"), ("<think >", "</think >"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"), ("\uff1cthink\uff1e", "\uff1c/think\uff1e"), ("&lt;think&gt;", "&lt;/think&gt;"),
    ("<\uff5cbegin\u2581of\u2581thinking\uff5c>", "<\uff5cend\u2581of\u2581thinking\uff5c>"),
)  # fmt: skip
BETWEEN = ("", "\n", "\n\n", " \n")


@pytest.mark.parametrize(("begin", "end"), SPELLINGS)
@pytest.mark.parametrize("thought", ["I'd give it 20.", 'Score: 20\nor more, {"score": 20}?', "20"])
def test_a_thought_in_every_spelling(begin: str, end: str, thought: str) -> None:
    if begin == "analysis" and not thought[0].isupper():
        thought = f"It is {thought}"
    for blank in BETWEEN if begin != "analysis" else ("", "\n"):
        reply = f"{blank}{begin}{blank}{thought}{blank}{end}"
        for answer in ("85", '{"score": 85}', "Score: 85"):
            assert read_score(f"{reply}{blank}{answer}").value == 85
        for cut in (f"{begin}{blank}{thought}", reply, f"{begin}{thought}"[:-1]):
            reading = read_score(cut)
            assert reading.value is None
            assert "thought" in reading.reason
        text = read_text(Reply(f"{reply}{blank}The Answer."), ModelRequest("?", None, 1, 2048))
        assert text == ("The Answer.", "")


@pytest.mark.parametrize(("reply", "score"), [
    ("<think>a 1<think>b 2</think>c 3</think>85", 85), ("<think>10</think><think>20</think>85", 85),
    ("<think></think>\n\n85", 85), ("<think/>85", 85), ("<think>It ends with \"</think>\": 20</think>85", 85),
    ("<think>`<think>` counts 20</think>85", 85), ("maybe 70</think>\n85", 85), ("I'd give it 20.</think>85", 85),
    ("<|channel|>analysis<|message|>20<|end|><|start|>assistant<|channel|>commentary<|message|>30<|end|>"
     "<|start|>assistant<|channel|>final<|message|>85<|return|>", 85),
    ("<|channel|>final<|message|>85", 85),
    ("<|START_THINKING|>20<|END_THINKING|><|START_RESPONSE|>85<|END_RESPONSE|>", 85),
    ("<|begin_of_thought|>20<|end_of_thought|>\n\n<|begin_of_solution|>\n85\n<|end_of_solution|>", 85),
    ("<reflection>I'd give it 20.</reflection>85", 85), ("<scratchpad>Score: 20</scratchpad>\n85", 85),
    ("85<|im_end|>", 85), ("Score: 85</s>", 85),
    # which of the two it is cannot be told, so there is no score
    ("<think>a<think>b</think>85", None), ("maybe 70</think>85", None), ("Score: 20. Wait </think> so 85", None),
    ("85\n<think>I'd give it 20.</think>", None), ("85\n<think>I'd give it 20.", None),
    ("<think>20</thinking>85", None), ("<think>20</think>\n85\n<think>no, 30</think>", None),
    ("Let me see. <think>I'd give it 20.", None), ("<think>20</think>b</think>85", None),
    ("<|channel|>commentary<|message|>85", None), ("<|channel|>analysis<|message|>20<|channel|>final<|message|>", None),
    # a tag in a sentence is a word
    ("The answer has a <think> tag. Score: 40", 40), ("It writes `<think>` and `</think>`. Score: 40", 40),
    ('It ends in "</think>". Score: 40', 40), ("Tags (<think>, <reasoning>) are not asked for. Score: 40", 40),
])  # fmt: skip
def test_thoughts_within_thoughts_and_tags_in_sentences(reply: str, score: float | None) -> None:
    assert read_score(reply).value == score


WHOLE = (
    "Put it between <think> and </think>.", "`<think>` opens a thought.", "A model writes </think> at the end of it.",
    "Use this:\n```\n<think>\nhm\n</think>\n```\nThat is all.", 'The tag "<think>" opens, and "</think>" closes.',
    "[reasoning](http://example.org) is a link.", "<thinker> is no tag.", "analysis of 5 cases: none.",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937", "Analysis shows it.",
    "final words", "[1] think [2]", "He said <reasoning> aloud, twice.", "<reason>Too late</reason><code>5</code>",
)  # fmt: skip
REFUSED = (
    "<think> and </think> are tags.", "The Answer.\n<think>Is it?</think>\nYes.", "Done.\n<think>hm", "<think>a",
    "Close it with this line:\n</think>\nand go on.", "thought.</think>The answer", "a\n</think>\n\nb\n</think>\n\nc",
    "<think>a</think>b</think>\n\nc", "Close it with:\n</think>\n\nand go on.", "<|channel|>analysis<|message|>hm",
)  # fmt: skip


@pytest.mark.parametrize("text", WHOLE)
def test_texts_are_whole(text: str) -> None:
    assert read_text(Reply(text), ModelRequest("?", None, 1, 2048)) == (text, "")
    assert not begins_with_thought(text)


@pytest.mark.parametrize("text", REFUSED)
def test_or_they_are_refused(text: str) -> None:
    found, reason = read_text(Reply(text), ModelRequest("?", None, 1, 2048))
    assert found is None
    assert "thought" in reason


def test_the_end_of_a_thought_that_the_template_began() -> None:
    assert spoken("first?\n</think>\n\nThe answer", data=True).text == "The answer"
    assert spoken("\n</think>\n\nThe answer", data=True).text == "The answer"
