"""What speaks against taking a number in a judge's words for its verdict: a wrong number is worse than none.

A number may be out of another scale, of one aspect or of another text, an amount that is taken off, a thing that might
be, or be taken back by what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from instil.evaluate.scales import DASHES, NUMBER, Scale

BOUND = re.compile(
    r"(?:[<>\u2264\u2265~]|\b(?:at most|at least|over|under|above|below|up to|more than|less than|not)) ?\Z",
    re.IGNORECASE,
)
IN_PASSING = re.compile(
    r"\b(?:if|had|unless|perfect|ideal|maximum|max|minimum|min|best|highest|lowest|possible|not|never|without|could"
    r"|should|might|would have|would need|sure(?![!,])|certain|confident|confidence|says|said|claims?|asks|tries|wrote"
    r"|writes|quot\w+|\w+n't|cannot|perhaps|maybe|probably|possibly|almost|nearly|hesitat\w+|tempt\w+|inclined|normally|usually|typically|otherwise"
    r"|circumstances|ignoring|apart from|aside from|except\w*|excluding|once"
    r"|initial(?:ly)?|original(?:ly)?|previous(?:ly)?"
    r"|as a draft|were it|with (?:the|this|that|a) (?:\w+ )?(?:fix|correction|change|edit)\w*)\b",
    re.IGNORECASE,
)
_IN_WORDS = {"three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "ten": 10, "twenty": 20, "fifty": 50}
_TOP = rf"(?P<top>[0-9]+(?:\.[0-9]+)?|{'|'.join(_IN_WORDS)}|(?:one |a )?hundred)(?!\w|[.,][0-9])"
_MOST = r"(?:max(?:imum|\.)?|highest|top|best|full|perfect)"
_TOPS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        # "out of 10", where no number stands before it: that is a fraction, perhaps of something else
        rf"(?:\A|[.,;:(\[\n/{DASHES}] ?|\b(?:score|rating|grade|mark|point)s? )out of(?: a)?"
        rf"(?: possible| total)?(?: of)?:? ?{_TOP}",
        rf"[(\[] ?(?:of|from|/) ?{_TOP} ?[)\]]",
        rf"(?<![0-9])(?<![0-9] )/ ?{_TOP} ?[:=)\]]",
        rf"\b{_MOST}(?:[ :=(]|\b(?:possible|achievable|score|marks?|points?|rating|grade|is|of|being|value)\b){{0,9}}"
        rf"{_TOP}(?= ?(?:points?|is|being|[.,;:)\]\n]|\Z))",
        rf"(?<![\w.,/{DASHES}]){_TOP} (?:being|is|as|=|means?|meaning|would be) (?:the |a )?{_MOST}\b",
        rf"\bscale (?:of|to|out of|up to) {_TOP}",
        rf"\b{_TOP}[ {DASHES}]?point (?:scale|likert|rating)",
        r"(?:[(\[]|\b(?:score|rating|grade|scale|range|rate|on)\b[ :(]*(?:(?:is|of|from|between|on|a|the) ){0,2})"
        rf"(?P<low>[01]|zero|one) ?(?:[{DASHES}]|to|\.\.\.?|and|through) ?"
        r"(?P<top>[34567]|10|20|50|100|1000|three|four|five|six|seven|ten|(?:one |a )?hundred)"
        rf"(?!\w|[.,:/][0-9]| ?[{DASHES}/])",
    )
)
_OTHER_SCALE = re.compile(
    rf"\b(?:scale|range)\b[^.\n0-9]{{0,20}}[0-9]+ ?(?:[{DASHES}]|to|and) ?[0-9]+|\bstars?\b|[\u2605\u2606\u2b50]"
    r"|\blikert\b",
    re.IGNORECASE,
)
# Words that a score's name may follow: "my score" is the judge's, "accuracy score" is of one aspect.
_OWN = re.compile(
    r"\b(?:my|the|your|its|a|an|this|that|so|and|thus|therefore|hence|is|of|final|overall|response|answer|model|judge"
    r"|evaluation|evaluator|assessment|numeric(?:al)?|integer|llm|ai|assistant|quality|verdict|with|following"
    r"|resulting|assigned|given|suggested|proposed|recommended|awarded"
    r"|(?:response|answer|model|assistant)['\u2019]s)\Z",
    re.IGNORECASE,
)
_OF_ANOTHER = re.compile(
    r"\A[\W_]*(?:(?:the|a|an) )?(?:reference|expected|correct|right|gold(?:en)?|ground|threshold|passing|average|mean"
    r"|median|baseline|target)\b[^,]*\Z",
    re.IGNORECASE,
)
_SAID_BY = re.compile(  # by the answer, or wanted of the judge
    r"\b(?:ask\w*|instruct(?:s|ed|ing)?|demand\w*|request\w*|want\w*|tell\w*|told|order\w*|insist\w*|suggest(?:s|ed)"
    r"|includ\w+|contain\w*|ends?|begins?|starts?|prints?|outputs?|repl(?:y|ies|ied)|ignor\w+)(?: \w+){0,4}[^\w,]*\Z"
    r"|\A\W*(?:model |assistant )?(?:response|answer|output|assistant|user|instruction|prompt|example|input)\s*:"
    r"[^\w,]*\Z",
    re.IGNORECASE,
)
_ASPECTS = (
    r"(?:style|grammar|spelling|punctuation|vocabulary|tone|fluency|clarity|readability|content|facts?|factual\w*|form"
    r"|format(?:ting)?|structure|presentation|effort|creativity|originality|brevity|concise\w*|length|complete\w*"
    r"|relevance|coherence|accuracy|correctness|helpfulness|depth)"
)
_KEY = re.compile(
    rf"\b(?:{_ASPECTS}|reference|expected|gold|examples?|samples?|previous|prior|initial|drafts?|baseline|max\w*|min\w*"
    r"|thresholds?|targets?|reason\w*|think\w*|thoughts?|explanation|rationale|criteri\w*|aspects?|dimensions?|metrics?"
    r"|categor\w*|sub ?scores?|breakdown|confidence|quot\w*|injection|input|instruction|prompt|rubric|scale)\b"
)
_NAMES_ASPECT = re.compile(r"criterion|criteria|aspect|dimension|category|metric|factor|attribute")
_OF_ASPECT = re.compile(rf"\b(?:for|on|in|in terms of|regarding|as to) (?:the )?{_ASPECTS}\b", re.IGNORECASE)
_THEN_ASPECT = re.compile(rf" ?(?:points? )?(?:for|on|in|in terms of|regarding) (?:the )?{_ASPECTS}\b", re.IGNORECASE)
_ENDS = r"(?= ?(?:points?\b|%|/ ?100\b|out of 100\b|[.,;!)\]\n]|\Z))"  # a number that counts nothing
_BESIDE = re.compile(rf" ?(?:[,;&|+=(\[]|[{DASHES}]{{1,3}}|and\b|vs\b\.?) ?(?P<value>{NUMBER}){_ENDS}", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"\b(?:no|nope|actually|instead|correction|corrected|revised|adjusted|make (?:it|that)|wait|sorry|hmm+"
    rf"|on second thoughts?)\b[^.\n0-9]{{0,40}}?(?P<value>{NUMBER}){_ENDS}",
    re.IGNORECASE,
)
_IN_SENTENCE = re.compile(  # the same by words that in another sentence say something else
    r"\b(?:rather|better|now|but|so|then|(?:down|up) to|lower(?:ed|ing)?|rais(?:ed|ing)?|reduc(?:ed|ing)?|chang\w+)\b"
    rf"[^.\n0-9]{{0,40}}?(?P<value>{NUMBER}){_ENDS}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n|\Z")
_TAKEN_OFF = re.compile(
    r" ?(?:points? )?(?:deducted|off|lost|less|subtracted|taken)\b"
    r"| points? (?:for|each|per|too|below|above|short|under|over|higher|lower)\b"
    r"| ?(?:points?)? ?[,;(]? ?(?:minus|less|with (?:a|an)) [^.\n]{0,30}?(?:[0-9]|deduct|penalt)",
    re.IGNORECASE,
)


def other_scale(text: str, scale: Scale) -> str:
    """Why numbers of a text are not on this scale, if it speaks of another one; else nothing.

    >>> from instil.evaluate.scales import HUNDRED
    >>> other_scale("Score: 8 (max 10)", HUNDRED), other_scale("Out of 100, it gets 8", HUNDRED)
    ('it speaks of another scale than 0 to 100', '')
    """
    ends = (match.groupdict() for form in _TOPS for match in form.finditer(text))
    another = _OTHER_SCALE.search(text) or any(
        _plain(end["top"]) != scale.high or (scale.low and _plain(end.get("low") or "1") != scale.low) for end in ends
    )
    return f"it speaks of another scale than {scale.low:g} to {scale.high:g}" if another else ""


def _plain(number: str) -> float:
    word = number.lower()
    return 100.0 if word.endswith("hundred") else float({"zero": 0, "one": 1, **_IN_WORDS}.get(word, word))


def is_key_of_another(key: str, said: object = None) -> bool:
    """Whether what a key of JSON leads to, or the object that has it, is of something else than the whole answer.

    >>> is_key_of_another("style"), is_key_of_another("result"), is_key_of_another("criterion", "tone")
    (True, False, True)
    """
    names = " ".join(re.findall(r"[A-Za-z][a-z]*", key)).lower()
    if said is None:
        return _KEY.search(names) is not None
    return _NAMES_ASPECT.fullmatch(names) is not None and not re.search(
        "overall|total|final|quality", str(said).lower()
    )


def is_qualified(before: str) -> bool:
    """Whether the name of a score is of something else than the answer, by the words before it.

    >>> is_qualified("Accuracy "), is_qualified("so my "), is_qualified("Sub-"), is_qualified("Fine, ")
    (True, False, True, False)
    """
    line = before.rpartition("\n")[2]
    said = line.rstrip()
    if said.endswith(("-", "_")):
        return said == line  # "sub-score"; but "right - score"
    return said[-1:].isalnum() and not _OWN.search(said)


def is_of_another(before: str) -> bool:
    """Whether a sentence, up to its number, is of the reference, a bound, one aspect of the answer, or its words."""
    return any(form.search(before) for form in (_OF_ANOTHER, _OF_ASPECT, _SAID_BY))


def spoken_against(text: str, end: int, value: float) -> str:
    """Why a number that ends there is no verdict, by what follows it; else nothing.

    >>> spoken_against("Score: 20. Actually, 85.", 9, 20), spoken_against("Score: 85 for style", 9, 85)
    ('two scores in one reply: 20, 85', 'a score of one aspect')
    """
    others: Iterable[re.Match[str] | None] = (
        _BESIDE.match(text, end),
        *_TAKEN_BACK.finditer(text, end),
        *_IN_SENTENCE.finditer(
            text, end, sentence.start() + 1 if (sentence := _SENTENCE_END.search(text, end)) else end
        ),
    )
    for other in others:
        if other and float(other["value"].lstrip(DASHES)) != value:
            return f"two scores in one reply: {value:g}, {other['value']}"
    if _TAKEN_OFF.match(text, end):
        return "an amount of points, not all of them"
    return "a score of one aspect" if _THEN_ASPECT.match(text, end) else ""
