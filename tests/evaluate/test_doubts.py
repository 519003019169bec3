"""Numbers in a judge's words that are no verdict: a careful reader would not give them, and neither are they read."""

from __future__ import annotations

import time

import pytest

from instil.evaluate.parsing import read_score
from instil.evaluate.scales import Scale

HUNDRED, FIVE = Scale(0, 100), Scale(1, 5)

OTHER_SCALE = (
    "Score: 8 (of 10)", "Score: 8 (max 10)", "Score: 8 (maximum: 10)", "Score: 8, out of 10", "Score: 8 - out of 10",
    "Score: 8 (0-10)", "Score: 8 (1-10)", "Score /10: 8", "Score/10: 8", "On a scale of one to ten: 8", "Likert: 4",
    "Out of 10, I'd give it 8", "Out of ten, I'd give it 8", "Out of 5, I'd give it 4", "Score: 4 (on 1-5)",
    "Score: 4, 5 being best", "Score: 4 with 5 as the maximum", "Score: 4. The maximum is 5.", "Score: 4. Max: 5",
    "Score: 4\nOut of: 5", '{"score": 8, "scale": "1-10"}', '{"score": 8, "outOf": 10}', '{"score": 8, "maxScore": 10}',
    '{"score": 8, "range": [0, 10]}', '{"score": 8, "total": 10}', '{"score": 8, "reason": "8 out of 10, it is good"}',
    '{"score": 8, "reason": "It is good on a scale of 1-10."}', '{"score": 8}\nScale: 1-10', "Score: 4 \u2605",
)  # fmt: skip
TWO = (
    "Score: 20, no, 85", "Score: 20. Actually, 85.", "Score: 20\nCorrection: 85", "Score: 20, 30", "Score: 20; 30",
    "Score: 20 (30)", "Score: 20 -- 30", "I'd give it 85... no, 20", "I'd give it 85 - no, 20",
    "Score: 10 - the answer is right, but 85", "**Thinking:** I'd give 20.\n\n**Answer:** 85",
    "I would rate this 85, but the unit is wrong: 20",
)  # fmt: skip
OF_SOMETHING_ELSE = (
    "Accuracy score: 20", "Style score: 20/100", "Partial score: 20", "Sub-score: 20", "Subscore: 20", "Score1: 20",
    "Score_1: 20", "Score A: 20", "Score for accuracy: 20", "Previous score: 20", "Baseline score: 20",
    "Reference score: 100", "Expected score: 20", "Target score: 100", "Passing score: 60", "Average score: 20",
    "Score threshold: 60", "Min score: 0", "Threshold: 20", "Confidence: 95", "Similarity: 95", "Accuracy: 95%",
    "Word count: 20", "Temperature: 20", "Errors: 3", "Rubric: 100", "Q1: 85", "No. 85",
    "The reference deserves a 100.",
    "The accuracy score is 20.", "A passing score is 60.", "For style I'd give it 85; for facts 20.",
    "I'd give it 85 for style.", "Score: 85 for style", "You asked for a score of 85", "Response: Score: 100",
    "The response demands a score of 100.", "The response ends with: Score: 100", "Ignore all: score: 100",
    '{"accuracy": {"score": 20}}', '{"reference": {"score": 100}}', '{"example": {"score": 100}}',
    '[{"criterion": "accuracy", "score": 20}]', '{"aspect": "style", "score": 20}', '{"reason": {"score": 20}, "x": 1}',
    '{"criteria": {"accuracy": {"score": 20}, "style": {"score": 20}}}',
)  # fmt: skip
TAKEN_OFF = (
    "Score: 85, minus 10 for style", "Score: 85, with a 10 point deduction: 75", "Score: 15 points deducted",
    "Score: 15 points off", "I award 10 points for the name.", "I give 5 points for each fact.",
    "The score is 20 points too low.",
)  # fmt: skip
MIGHT_BE = (
    "I'd hesitate to give it 85.", "I almost gave it 85.", "I might give it 85.", "Normally I'd give it 85.",
    "Under other circumstances I'd rate it 85.", "Ignoring the typo, I'd rate it 85.", "With the fix I'd rate it 85.",
    "Once fixed, I'd rate it 85.", "Apart from the typo I'd rate it 85", "I cannot give it 20.",
    "Maybe I'd give it 20.",
)  # fmt: skip


@pytest.mark.parametrize("reply", [*OTHER_SCALE, *TWO, *OF_SOMETHING_ELSE, *TAKEN_OFF, *MIGHT_BE])
def test_no_verdict(reply: str) -> None:
    reading = read_score(reply, HUNDRED)
    assert reading.value is None
    assert reading.reason


READ = {
    "The response is right, so my score: 70": 70, "# Score: 70": 70, "> Score: 70": 70, "The answer's score: 40": 40,
    "It is 100% right. Score: 85": 85, "Verdict: 40/100": 40, "Bewertung: 85": 85, "\u8bc4\u5206\uff1a85": 85,
    "\u041e\u0446\u0435\u043d\u043a\u0430: 85": 85, "Final answer: 85": 85, "85 - it is good": 85,
    "Score: 85. The response says 43, but the right value is 42.": 85, "Score: 70 (out of 100)": 70,
    "Score: 90\n\nThe answer lists the numbers from 1 to 10.": 90, "Score: 20\nThe maximum speed is 60 km/h.": 20,
    "Score: 85\nConfidence: 95%": 85, "Score: 45. Accuracy: 3/5. Fluency: good.": 45, "Score: 60, not 70": 60,
    "Initial score: 20\nFinal score: 85": 85, "I'd give it 60, down from 85.": 60, "Score: 8/10 in all": 80,
    '{"evaluation": {"score": 85}}': 85, '{"reason": "It lists 1 to 10 as asked.", "score": 85}': 85,
    '{"reason": "3 of 4 facts, 3/4 in all", "score": 75}': 75, '{"score": 85, "out_of": 100}': 85,
}  # fmt: skip


@pytest.mark.parametrize("reply", READ)
def test_verdicts_beside_other_numbers(reply: str) -> None:
    assert read_score(reply, HUNDRED) == read_score(str(READ[reply]), HUNDRED)


@pytest.mark.parametrize(("reply", "value"), [
    ("Score: 4 (max 5)", 4), ("Score (1-5): 4", 4), ("4. 5 is the best", None), ("Score: 4, where 5 is best", 4),
    ("Score: 2\nIt misses 3 facts", 2), ('{"score": 4, "max": 5}', 4), ("Score (0-5): 4", None), ("Errors: 3", None),
    ("Score: 4 (max 10)", None), ("Out of 10: 4", None), ('{"score": 4, "reason": "4 out of 10"}', None),
    ('{"score": 4, "reason": "4 out of 5"}', 4), ("Facts right: 3", None),
    ("Score: 4 where 1 is worst and 5 best", None),
])  # fmt: skip
def test_the_same_of_a_scale_of_five(reply: str, value: float | None) -> None:
    assert read_score(reply, FIVE).value == value


@pytest.mark.parametrize(
    "words", ["but ", "no, ", "max ", "out of ", "scale of ", "score ", "(of ", "asks ", "for ", "/ "]
)
def test_no_words_take_long(words: str) -> None:
    started = time.process_time()
    read_score("Score: 20 " + words * (19_000 // len(words)))
    read_score(words * (19_000 // len(words)) + "score: 20")
    assert time.process_time() - started < 20
