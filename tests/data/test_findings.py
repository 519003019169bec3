"""What is wrong with rows: every fault that is planted is found with its rows, and sound rows are left in peace."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from instil.data.findings.finding import Finding
from instil.data.findings.look import look
from instil.data.findings.scripts import Scripts
from instil.data.findings.seen import seen
from instil.data.sources import read_source
from instil.data.splits import Split, split_grouped, split_in_order
from instil.records import Example, Turn

WORDS = "apple bridge candle desert engine forest garden harbour island jungle kitchen ladder market needle".split()
KEY = "ghp_" + "A1b2C3d4E5" * 4


def sound(count: int = 40) -> list[Example]:
    """Rows that nothing is wrong with."""
    draw = random.Random(5)
    rows = []
    for number in range(count):
        some = " ".join(draw.sample(WORDS, draw.randint(2, 9)))
        rows.append(Example(f"{draw.choice(WORDS)} {number}: which?", f"It is the {some} {number}.", row=number))
    return rows


def found(rows: Sequence[Example], split: Split | None = None, **how: object) -> dict[str, Finding]:
    looked = look(split or split_in_order(list(rows)), **how)  # type: ignore[arg-type]
    return {finding.kind: finding for finding in looked.findings}


def with_row(at: int = 7, **changes: str) -> list[Example]:
    rows = sound()
    rows[at] = replace(rows[at], **changes)
    return rows


def test_sound_rows_are_left_in_peace() -> None:
    assert found(sound()) == {}
    assert found(read_source("starter").examples) == {}


@pytest.mark.parametrize(
    ("kind", "key", "text"),
    [
        ("whole_prompt", "instruction", "### Instruction:\nName it.\n\n### Response:"),
        ("whole_prompt", "instruction", "Below is an instruction that describes a task. Write"),
        ("whole_prompt", "instruction", "<|im_start|>user\nName it"),
        ("whole_prompt", "input", "a text [INST] with a mark"),
        ("whole_prompt", "input", "it ends here <|endoftext|> does it?"),
        ("whole_prompt", "instruction", "<|im_start|>user\nName it"),
        ("end_marker", "output", "It is so.</s>"),
        ("end_marker", "output", "It is so.<|endoftext|>"),
        ("end_marker", "output", "It is so.<|im_end|>\n"),
        ("end_marker", "output", "It is so.<end_of_turn>"),
        ("end_marker", "output", "It is so.\n\n### Response:\nIt is."),
        ("end_marker", "output", "It is so.\nHuman: And now?"),
        ("place_holder", "output", "nan"),
        ("place_holder", "output", " NaN "),
        ("place_holder", "output", "null"),
        ("place_holder", "output", "None"),
        ("place_holder", "output", "N/A"),
        ("place_holder_input", "input", "<noinput>"),
        ("place_holder_input", "input", "nan"),
        ("invisible", "output", "zero\u200bwidth"),
        ("invisible", "instruction", "\ufeffName it, and only that one"),
        ("invisible", "output", "left \u202eto right"),
        ("invisible", "output", "bell \x07 rings"),
        ("invisible", "output", "word\u200djoined"),
        ("invisible", "output", "tag \U000e0041\U000e0042 here"),
        ("mojibake", "output", "CafÃ© au lait"),
        ("mojibake", "output", "itâ€™s broken"),
        ("mojibake", "output", "ÐŸÑ€Ð¸Ð²ÐµÑ‚ to you"),
        ("mojibake", "output", "a \ufffd sign"),
        ("mojibake", "output", "ðŸ˜€ smile"),
        ("secret", "output", f"the token is {KEY}."),
        ("secret", "input", "AKIAQ3EGRJ7PLM2X5ZTW is the key"),
        ("secret", "output", "-----BEGIN RSA PRIVATE KEY-----\nMIIE"),
        ("secret", "output", "export HF=hf_" + "aB3dE5gH7j" * 3 + "Kl8M"),
        ("secret", "input", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9"),
        ("secret", "output", "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ" + "aBcDeFgH"),
        ("secret", "output", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYzQ4kT8mW2v"),
        ("secret", "output", "AKIAIOSFODNN7EXAMPLE"),
        ("whole_prompt", "instruction", "Human: Name it.\n\nAssistant:"),
        ("end_marker", "output", "It is <unk> so."),
        ("mail", "output", "write to jane.doe@inbox-mail.org please"),
        ("echo", "output", "island 7: which?"),
        ("empty_answer", "output", "\u200b \u2060"),
    ],
)
def test_what_is_planted_is_found(kind: str, key: str, text: str) -> None:
    rows = with_row(**{key: text})
    if kind == "echo":
        rows[7] = replace(rows[7], output=rows[7].instruction)
    one = found(rows)[kind]
    assert (one.rows, one.count) == ((7,), 1)
    assert "row 7" in one.said
    assert one.severity == ("note" if kind == "mail" else "warning")


@pytest.mark.parametrize(
    "text",
    [
        "«CAFÉ» et «ÉTÉ…» — déjà vu, naïve, Ångström, São Paulo, NÃO, IRMÃ, “À la carte”",
        "नमस्ते क्\u200dष می\u200cخواهم 👩\u200d👩\u200d👧 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\u2067שלום\u2069 \u200fעולם",
        "<s>struck</s> through, a < b, <div>, [1], ## Instructions, ### Ingredients:, # Response",
        "sk-learn, hf_hub_download, ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, you@home",
        "sk-a-very-long-name-of-a-branch-of-code, AccessKey, a secret_key",
        "None of them; null and void; nan bread, N/A or not",
        "The human: a study. Superhuman: yes. Привет, 你好，世界。Ελληνικά, đường, ß, Œuvre, Ñandú",
    ],
)
def test_what_is_right_is_left_in_peace(text: str) -> None:
    for key in ("instruction", "input", "output"):
        assert found(with_row(**{key: text})) == {}


def test_a_talk_in_a_prompt_is_none_that_waits_for_an_answer() -> None:
    talk = "How long is this talk?\nHuman: Hello.\nAssistant: Hello."
    assert found(with_row(instruction=talk)) == {}
    assert found(with_row(instruction="Say: Assistant:")) == {}


def test_a_models_own_control_tokens_are_marks() -> None:
    rows = with_row(output="It is so. <|tool_sep|> [REF] @@end@@")
    assert "end_marker" not in found(rows)
    one = found(rows, own=["<|tool_sep|>", "[REF]", "@@end@@", "a", "the"])["end_marker"]
    assert '"<|tool_sep|>" in 1' in one.said
    assert '"[REF]" in 1' in one.said
    assert '"@@end@@" in 1' in one.said


def test_a_secret_is_named_by_its_kind_and_never_shown() -> None:
    (one,) = found(with_row(output=f"it is {KEY}")).values()
    assert "GitHub token in 1" in one.said
    assert KEY not in str(one.as_json())


def test_both_answers_of_a_pair_and_all_of_a_conversation_are_looked_at() -> None:
    rows = sound()
    assert found(rows, answers=lambda row: (row.output, "</s>" if row.row == 3 else "no"))["end_marker"].rows == (3,)
    before = (Turn("user", "nan \u200b"), Turn("assistant", "Yes.<|im_end|>", reasoning="hm"))
    rows[5] = replace(rows[5], history=before)
    assert found(rows).keys() == {"end_marker", "invisible"}
    row = seen(rows[5], "train")
    assert (row.prompt, row.answers) == (
        f"nan \u200b\n{rows[5].instruction}",
        ("hm", "Yes.<|im_end|>", rows[5].output),
    )


def test_many_rows_are_told_of_in_one_line_that_names_the_first() -> None:
    rows = [replace(row, output=f"{row.output}</s>") if row.row % 2 else row for row in sound()]
    one = found(rows)["end_marker"]
    assert one.said.startswith(
        '20 answers hold marks that end an answer or begin a prompt ("</s>" in 20): rows 1, 3, 5,'
    )
    assert one.said.endswith("17, 19, ...")
    assert one.rows == tuple(range(1, 40, 2))


def test_answers_that_are_all_the_same_or_none_make_a_run_worthless() -> None:
    rows = sound()
    same = found([replace(row, output="Yes.") for row in rows])
    assert (same["one_answer"].severity, same["one_answer"].said) == (
        "error",
        'all 34 training rows have the same answer, "Yes."',
    )
    none = found([replace(row, output="nan" if row.row % 2 else "null") for row in rows])
    assert none["no_answers"].severity == "error"
    assert "all 34 training rows" in none["no_answers"].said
    assert "one_answer" not in found([replace(row, output="Yes.") for row in rows[:2]])  # two rows say little
    assert "one_answer" not in found([replace(row, instruction="Say yes.", output="Yes.") for row in rows])
    called = [replace(row, output="", tool_calls=f'[{{"n": {row.row}}}]') for row in rows]
    assert not found(called).keys() & {"empty_answer", "no_answers", "one_answer"}


def test_the_same_answer_to_many_prompts() -> None:
    sorry = "I am sorry, but as a language model I cannot help you with that."
    one = found([replace(row, output=sorry) if row.row in range(5, 11) else row for row in sound()])["repeated_answer"]
    assert "to 6: rows 5, 6, 7, 8, 9, 10" in one.said
    assert one.rows == tuple(range(5, 11))
    few = [replace(row, output=sorry) if row.row in range(5, 9) else row for row in sound()]
    assert "repeated_answer" not in found(few)
    labels = [replace(row, output="yes" if row.row % 9 else "no") for row in sound()]
    assert "88% of the training answers" in found(labels)["one_label"].said
    assert not found([replace(row, output="yes" if row.row % 2 else "no") for row in sound()])


def test_rows_that_come_again() -> None:
    rows = sound()
    rows[20], rows[21] = replace(rows[3], row=20), replace(rows[4], row=21, output="Something else.")
    there = found(rows)
    assert there["repeated_row"].rows == (20,)
    assert (there["answered_otherwise"].rows, there["answered_otherwise"].severity) == ((21,), "note")
    assert "1 row that asks what an earlier row asks, and answers otherwise: row 21" in there["answered_otherwise"].said
    accent = [replace(rows[0], instruction="Say caf\u00e9."), replace(rows[0], instruction="Say cafe\u0301.", row=1)]
    assert found([*accent, *sound()[2:]])["repeated_row"].rows == (1,)
    texts = [Example("", f"Text {number}.", row=number) for number in range(10)]  # without a question
    assert not found(texts).keys() & {"answered_otherwise", "repeated_row", "echo"}


def test_answers_that_begin_with_their_prompt_or_end_within_a_sentence() -> None:
    asked = "Which of the islands lies furthest to the west?"
    assert found(with_row(instruction=asked, output=f"{asked} The last one."))["echo_begins"].rows == (7,)
    long = [
        replace(
            row, output=f"This is so. And {row.output.lower()} It goes on with a few words more than that {row.row}."
        )
        for row in sound()
    ]
    assert found(long) == {}
    long[9] = replace(
        long[9], output="This is so. And then the story goes on with many more words until the limit of the"
    )
    assert found(long)["unended"].rows == (9,)
    without = [replace(row, output=row.output.rstrip(".")) for row in long]
    assert "unended" not in found(without)  # they all end so


def test_kinds_that_are_held_out_only() -> None:
    rows = [replace(row, task="new" if row.row >= 37 else WORDS[row.row % 3]) for row in sound()]
    one = found(rows)["kind_held_out"]
    assert one.rows == (37, 38, 39)
    assert '3 held-out rows of 1 kind that no training row has ("new"): rows 37, 38, 39' in one.said
    assert "kind_held_out" not in found([replace(row, task=WORDS[row.row % 3]) for row in sound()])


def test_a_file_in_order_is_told_where_it_is_split_in_order() -> None:
    kinds = [replace(row, task=WORDS[row.row // 10]) for row in sound()]
    assert "sorted_by_kind" in found(kinds)
    assert not found(kinds, split_grouped(kinds, 1)).keys() & {"sorted_by_kind", "sorted"}
    parts = split_in_order(kinds)
    assert not found(kinds, Split("grouped", parts.train, parts.test, parts.validation))
    mixed = [replace(row, task=WORDS[row.row % 4]) for row in sound()]
    assert not found(mixed)
    by_length = [
        replace(row, row=number) for number, row in enumerate(sorted(sound(), key=lambda row: len(row.output)))
    ]
    assert "sorted by" in found(by_length)["sorted"].said
    by_letter = [replace(row, row=at) for at, row in enumerate(sorted(sound(), key=lambda row: row.instruction))]
    assert "sorted by the instruction" in found(by_letter[::-1])["sorted"].said
    assert "sorted" not in found(by_letter[:19])


def test_of_very_many_rows_some_are_looked_at_and_it_says_so() -> None:
    rows = [replace(row, output=f"{row.output}</s>") for row in sound(400)]
    looked = look(split_in_order(rows), at_most=100)
    assert 98 <= looked.rows <= 100
    assert looked.of == 400
    (one,) = looked.findings
    assert one.count == looked.rows
    assert one.said.endswith(f"(of {looked.rows} rows looked at)")
    assert looked.findings == look(split_in_order(rows), at_most=100).findings
    whole = look(split_in_order(rows), at_most=400)
    assert whole.rows == 400
    assert "looked at" not in whole.findings[0].said
    held_out = [replace(row, task="a" if row.row < 390 else "b") for row in sound(400)]
    assert look(split_in_order(held_out), at_most=40).kinds["validation"]  # each part has its share


def test_a_fault_is_found_in_whatever_row_of_many_it_stands() -> None:
    """Texts are searched many at once; rows at the seams are no exception."""
    filler = "word " * 3000
    rows = [Example(f"Do {number} {filler}", f"Done {number}. {filler}", row=number) for number in range(160)]
    for at in (0, 65, 66, 67, 159):
        rows[at] = replace(rows[at], output=f"{rows[at].output}</s>", instruction=f"[INST]{rows[at].instruction}")
    there = found(rows)
    assert there["end_marker"].rows == there["whole_prompt"].rows == (0, 65, 66, 67, 159)


def test_scripts_are_counted_by_letters() -> None:
    scripts = Scripts()
    scripts.add(["Hello, wörld 123", "Привет", "你好", "ＡＢ"])
    assert scripts.shares() == {"Latin": 0.6, "Cyrillic": 0.3, "Han": 0.1}
