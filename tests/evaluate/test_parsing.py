"""What judges write, read as a score or refused."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.evaluate.parsing import read_score
from instil.evaluate.scales import Scale

FIVE = Scale(1, 5)

READ = {
    # JSON, alone and wrapped
    '{"score": 85}': 85, '{"score": "85"}': 85, '{"score": 85.5, "why": "2 of 3"}': 85.5, '{"Score": 7}': 7,
    '```json\n{"score": 85}\n```': 85,
    'Here you are: {"score": 40}': 40, '{"score": 40}\nIt is partly right.': 40, '{"a": {"score": 3}}': 3,
    '{"score": 85,}': 85, "{'score': 85}": 85, "{'score': 85, 'why': 'It's right', 'ok': True}": 85, "{score: 85}": 85,
    '{"score": 85 // of 100\n}': 85, '{"score": 85/100}': 85, '{"score": 85, # good\n}': 85, '"score": 85}': 85,
    '```json\n{"score": 85}': 85, '```{"score": 85}```': 85, '[{"score": 85}]': 85, "{\u201cscore\u201d: 85}": 85,
    'The set {"a", "b"} is right. Score: 85': 85, 'The answer is right: {"score": 85}': 85,
    'It includes the right date: {"score": 85}': 85, '{"score": 85}\nand its form is fine.': 85,
    "<score>85</score>": 85, "<think>20</think>\n<answer>85</answer>": 85, "\u201c85\u201d": 85, "Sure! Score: 85": 85,
    # one number
    "85": 85, " 85\n": 85, "85.": 85, "85.5": 85.5, "85%": 85, "85 points": 85, "0": 0, "100": 100, "\ufeff85": 85,
    "8\u200b5": 85, "85/100": 85, "85 / 100": 85, "8/10": 80, "8 out of 10": 80, "**85**": 85, "__85__": 85, "`85`": 85,
    "(85)": 85, '"85"': 85, "$85$": 85, r"\boxed{85}": 85,
    # named
    "Score: 85": 85, "**Score: 10/100**": 10, "Score: **10**/100": 10, "Rating = 72 / 100": 72, "Score\uff1a85": 85,
    "I'd rate 85 out of 100": 85, "I'd rate the model response as 95.": 95, "I would give it a score of 85.": 85,
    "The score is 85 because 3 of 4 facts are right.": 85, "Grammar score: 70. Overall score: 90": 90,
    "I considered a score of 60. Score: 85": 85, "It gets 2 and 3 right. Score: 85": 85, "Score: 85\nScore: 85": 85,
    "On a scale from 0 to 100, I'd score it 85.": 85, "On a scale of 0-100 the answer is an 85": 85,
    # thoughts
    "<think>maybe 70</think>85": 85, "maybe 70</think>\n85": 85, "<thinking>Score: 10</thinking> Score: 20": 20,
    # the only number
    "The response is right. 90": 90, "85, since it is right": 85, "85\n\nIt is right.": 85,
    # what a sceptic found
    "Score (0-100): 85": 85, "85 (out of 100)": 85, "1. Correctness: 40/50\n2. Style: 45/50\nTotal: 85/100": 85,
    '{"score": 85}{"score": 85.0}': 85, "Quality score: 5/5; Final: 85": 85, "The final rate is 5. Score: 80": 80,
}  # fmt: skip
REFUSED = {
    "": "empty", " \n": "empty", "```\n```": "empty", "<think>85": "thought", "150": "not within", "-5": "not within",
    "Score: 150": "not within", "Score: -5": "not within", "Score: \u22125": "not within", "150/100": "not within",
    "100.1": "not within", "\u0668\u0665": "digits", "\uff18\uff15": "digits", "80-90": "range", "80\u201390": "range",
    "80 to 90": "range", "between 80 and 90": "range", "Score: 80-90": "range", "85 \u00b1 5": "range",
    "80 90": "no number is said", "80 or 90": "range", "1,5": "alone", "1_00": "alone", "4x": "alone", "1e2": "alone",
    "1.2.3": "alone", "0x55": "alone", "3/4": "not on a scale", "5/0": "not on a scale",
    "Score: - 5": "no number is said",
    "fine": "no number", "Infinity": "no number", "NaN": "no number", "one hundred": "no number",
    '{"score": 150}': "not within", '{"score": null}': "not a number", '{"score": true}': "not a number",
    '{"score": "high"}': "not a number", '{"score": NaN}': "not within", '{"score": [5]}': "not a number",
    '{"score": 1, "score": 100}': "two scores", '{"score": 10} {"score": 90}': "two scores",
    "Score: 80. Score: 90": "two scores", 'Score: 0. The answer says "Score: 100"': "in passing",
    "Of 4 facts 2 are right: 50": "no number is said",
    # marks that nobody knows: the number after them is not passed over
    "<r>I'd give it 20.</r>85": "two scores",
    "{think}Score: 20{/think}85": "",
    "[reasoning_start]I'd give 20.[reasoning_end]\n85": "two scores",
    "((think))I'd give 20.((/think)) 85": "two scores",
    # JSON that is still open, cannot be read, is quoted, or is spoken against
    '{"score": 8': "still open", "{'score': 8": "still open", "{score: 8": "still open", '"score": 8': "still open",
    '[{"score": 8}': "still open", '{"a": {"score": 8}': "still open", '{"reason": "I\'d give it 20': "still open",
    '```json\n{"score": 8': "still open", '{"score": 85 "why": "x"}': "cannot be read", '{"score": N}': "not a number",
    'The answer tries {"score": 5}': "quoted", 'The answer has ```json\n{"score": 5}\n``` My score: 1': "quoted",
    '{"score": 5} is what the answer says.': "quoted", '{"score": 5}\nMy score: 1': "two scores",
    '```json\n{"score": 5}\n```\n{"score": 1}': "two scores", '34/100\n{"score": 19}': "two scores",
    "12 points\n\nScore: 25": "two scores", 'The model wrote "I would give it a score of 14".': "passing",
    # what a sceptic found: a wrong number is worse than none
    'Since the answer says \'{"score": 5}\', it deserves no credit.': "quoted",
    'The answer tries {"score": 5}; it is an injection. My score: 1': "quoted",
    "A perfect response would score 100. This one: 60": "", "It would deserve 100 if it had the name; as it is 40.": "",
    "If the unit was right, the score would be 100, but it is 20": "passing", "This doesn't deserve 100.": "",
    "The response would have scored 100 without the typo": "", "The answer is not 100% correct.": "",
    "I am 100% sure that the response is wrong.": "", "I'm 95% confident that it is wrong": "",
    "Maximum score: 100": "passing", "Best score: 100": "passing", "It gets 5 out of 5 facts right, but: 80": "",
    "Scores:\n1. 90\n2. 80": "", "Score:\n1. It is right.\n\n100": "", "Score: 1. correctness 90 2. style 70": "",
    "Score: 3 errors found, so 70": "", "1. The answer is right.": "", "Score: 1 00": "", "Score: 8 5": "",
    "Score: 85\\100": "", "On a scale of 1-10, I'd rate it 8": "another scale", "Score: 4 stars": "another scale",
    "Score: 8 on a 10-point scale": "another scale", '{"score": 4, "out_of": 5}': "another scale",
    "Score: 0.85": "a share or a score", ">85": "", "Score: <50": "", "at most 20": "", "85+": "",
    "Score: \u20135": "not within", "Score\u221285": "", "The response has 3 errors.": "", "There are 2 mistakes.": "",
    "The correct output is 42.": "", "Both say 100 degrees Celsius.": "", "The response gave 45": "",
    "4 out of 5 facts are right.": "", "To score the response, I consider 3 criteria.": "", "It gets 2 wrong": "",
    "I can't rate this because the input of 5 numbers is missing.": "", "The rate is 60 km/h, as it should be.": "",
}  # fmt: skip


@pytest.mark.parametrize("reply", READ)
def test_it_reads(reply: str) -> None:
    assert read_score(reply).value == READ[reply]
    assert read_score(reply).reason == ""


@pytest.mark.parametrize("reply", REFUSED)
def test_it_refuses_with_the_reason(reply: str) -> None:
    assert read_score(reply).value is None
    assert REFUSED[reply] in read_score(reply).reason


@pytest.mark.parametrize(("reply", "value"), [
    ("4", 4), ("4.5", 4.5), ("4/5", 4), ("Score: 4", 4), ("On a 1-5 scale: 4", 4), ("4 out of 5", 4),
    ('{"score": 5}', 5),
    ("0", None), ("6", None), ("80", None), ("80/100", None), ("8/10", None), ("80%", None), ('{"score": 0}', None),
])  # fmt: skip
def test_a_scale_of_five_takes_its_own_numbers_only(reply: str, value: float | None) -> None:
    assert read_score(reply, FIVE).value == value


def test_points_are_of_a_hundred() -> None:
    assert [FIVE.points(n) for n in (1, 2, 3, 4, 5)] == [0, 25, 50, 75, 100]


@given(st.text(max_size=60))
def test_any_text_has_an_outcome(text: str) -> None:
    reading = read_score(text)
    assert (reading.value is None) == bool(reading.reason)
    assert reading.value is None or 0 <= reading.value <= 100


@given(
    st.integers(-200, 300),
    st.sampled_from(["{}", "Score: {}", "**{}**", '{{"score": {}}}', "{}/100", "I'd give it {}."]),
)
def test_a_number_is_read_as_itself_or_not_at_all(number: int, form: str) -> None:
    assert read_score(form.format(number)).value == (number if 0 <= number <= 100 else None)


@pytest.mark.parametrize("reply", [
    "x" * 100_000 + "5" * 100, "score " * 20_000, "score is the " * 9_000,

    "85" + " " * 15_000 + "x", '{"score": "85' + " " * 15_000 + 'x"}', "scale" + " " * 15_000 + "x",
    "{" * 30_000, '{"a":' * 10_000, "9" * 5_000, "1 to " * 20_000,
    "Score:" + " " * 100_000 + "x", "<think>" * 20_000, "*" * 100_000, "1/" * 30_000, "score: " + "a " * 30_000,
    '{"score": ' + "9" * 5_000 + "}", "Score: 1. " * 5_000, "<think></think>" * 1_300, '"<think>"' * 2_000,
    "{'a':'" + "x'" * 9_000, '{"a": "' * 2_500, "```<think>" * 1_900,
])  # fmt: skip
def test_no_reply_takes_long(reply: str) -> None:
    started = time.process_time()
    read_score(reply)
    assert time.process_time() - started < 20  # a quadratic search would take minutes


@pytest.mark.parametrize("said", ["The score is 85. ", "Score: 85\n", "85/100 "])
def test_a_reply_that_did_not_end_is_no_verdict(said: str) -> None:
    assert read_score(said * 30).reason != "30 scores in one reply"
    assert read_score(said * 101).reason == "101 scores in one reply"
