"""Chat templates: programs of others, which must neither run on, nor fill memory, nor reach what is not theirs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from instil.data.templates.chat import ChatTemplate
from instil.data.templates.find import find_template, template_from
from instil.data.templates.forms import TEMPLATES
from instil.data.templates.marks import marks_of
from instil.errors import InstilError
from instil.records import Example, Turn
from tests.fuzz.promise import Mutate, Target, folder
from tests.fuzz.trees import dumped, parsed, tree_mutator


class _Marks:
    """A tokenizer with the tokens of ChatML."""

    eos = "<|im_end|>"
    names: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": ""}

    def marks_in(self, text: str) -> list[tuple[str, bool]]:
        found: list[tuple[str, bool]] = []
        for number, part in enumerate(text.split("<|im_end|>")):
            found += [("<|im_end|>", True)] * (number > 0) + [(part, False)] * bool(part)
        return found


CALL = '[{"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": "x"}}}]'
EXAMPLES = (
    Example("2 + 2?", "4", "about <|im_end|>"),
    Example("And 3?", "<think>6</think> 6", history=(Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))),
    Example("Look!", "", tool_calls=CALL, tools='[{"name": "look", "parameters": {}}]', reasoning="so"),
)


class Escaped(BaseException):
    """A template ran what is not its own."""


def _forbidden(*_: Any, **__: Any) -> Any:
    raise Escaped


def read(given: bytes) -> None:
    """A file of Jinja, with rows put into it; what would leave the sandbox is not there meanwhile."""
    kept = subprocess.Popen.__init__
    try:
        subprocess.Popen.__init__ = _forbidden  # type: ignore[method-assign]
        with folder() as place:
            path = place / "template.jinja"
            path.write_bytes(given)
            _used(given, path)
    finally:
        subprocess.Popen.__init__ = kept  # type: ignore[method-assign]


def _used(given: bytes, path: Path) -> None:
    marks_of(given.decode("utf-8", "replace"), _Marks.names, ["<|im_end|>", "<s>"])
    template = find_template(str(path), path.parent, _Marks())
    refused: list[InstilError] = []
    for example in EXAMPLES:
        try:
            template.rendered(example)
            template.prompt_pieces(example)
        except InstilError as error:
            refused.append(error)
    template_from(json.loads(json.dumps(template.as_json())), "as written")
    template.chat_template()


SNIPPETS = (
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.role }}",
    "{{ m['content'] | trim }}",
    "<|im_end|>",
    "\n",
    "{{ m.content }}",
    "{{ bos_token }}",
    "{% if loop.first %}",
    "{% else %}",
    "{% endif %}",
    "{% set x = m.content %}",
    "{{ m.content * 9999999 }}",
    "{{ range(10**9) | list }}",
    "{{ m.content.replace('', 'a' * 1000) }}",
    "{% for i in range(99999) %}",
    "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}",
    "{{ messages | tojson }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__ }}",
    "{{ '%99999d' % 1 }}",
    "{{ '{0.__class__}'.format(m) }}",
    "{{ (m.content,) | join('x') | indent(9999) }}",
    "{% set ns = namespace(x=[1]) %}",
    "{% set ns.x = ns.x + ns.x %}",
    "{{ ns.x | length }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ m.content.split('a') | map('upper') | list }}",
    "{{ [[1]] * 9 | sum(start=[]) }}",
    "{{ m | dictsort }}",
    "{{ m.items() | list }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ 'a' | center(10**8) }}",
    "{{ x | pprint }}",
    "{{ m.content | wordwrap(1) | title }}",
    "{{ [1, 2] | batch(10**8, 0) | list }}",
    "{{ 10**400 }}",
    "{{ 1e308 * 10 }}",
    "{{ m.content | list | slice(10**8) | list }}",
    "{{ m.content[::-1] }}",
    "{{ m.content[1:] + m.content[:1] }}",
    "{%- if tools %}{{ tools | tojson(indent=99) }}{% endif %}",
    "{{ self }}",
    "{% block a %}{% endblock %}",
    "{% include 'a' %}",
    "{% import 'a' as b %}",
    "{% call f() %}{% endcall %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{{ loop.cycle('a') }}",
    "{{ lipsum() }}",
    "{{ dict(a=1) | xmlattr }}",
    "{{ m.content is sameas 1 }}",
    "{% break %}",
    "{{ m.content | urlize }}",
    "{{ '\\ud800' }}",
    "{{ m.content.encode() }}",
    "{{ messages.append(1) }}",
    "{# a #}",
    "{{ m.content | replace('a', m.content) | escape }}",
    "{{ '%s' | format(m.content) }}",
    "{% raw %}{{",
    "{% endraw %}",
    "{{ (m.content ~ '')[0] }}",
    "{{ m.tool_calls[0].function.arguments | tojson }}",
    "{{ m.content.join(['a', 'b']) }}",
    "{% set x = x ~ x ~ x %}",
    "{{ [m] | map(attribute='content') | join }}",
    "{{ m.get('content', '') }}",
    "{{ -x }}",
    "{{ messages[0] ~ messages[-1].content }}",
    "{% for k, v in m.items() %}",
    "{% for a in m.content %}",
    "{{ caller() }}",
    "{{ m.content | random }}",
    "{{ m.content | unique | sort | first }}",
    "{{ x.format(1) }}",
    "{{ joiner(',')() }}",
    "{{ m.content | groupby(0) | list }}",
    "{% for a in b recursive %}",
    "{{ loop(a) }}",
    "{{ m.content | float ** 2 }}",
)
GOOD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(last='') -%}{%- for m in messages -%}{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}"
    "{{ c.function.name ~ (c.function.arguments | tojson) }}{%- endfor -%}{%- endif -%}{%- set ns.last = m.role -%}"
    "{{ '<|im_start|>' + m.role + '\n' + (m.content or '').split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
    "{% macro f(m) %}{{ m.role }}: {{ m.content }}{% endmacro %}{% for m in messages %}{{ f(m) }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}{% if tools %}{{ tools | tojson }}{% endif %}",
)


def mutate(given: bytes, draw: Random, change: Mutate) -> bytes:
    """Snippets put in, statements moved or left out, and letters changed."""
    text = given.decode("utf-8", "replace")
    for _ in range(draw.choice((1, 1, 2, 3, 5))):
        at = draw.randrange(len(text) + 1)
        if draw.random() < 0.8:  # where something begins
            ends = [place for place, char in enumerate(text) if char == "{"] + [len(text)]
            at = draw.choice(ends)
        to = min(len(text), at + draw.randrange(1, 60))
        how = draw.randrange(6)
        if how < 2:
            text = text[:at] + draw.choice(SNIPPETS) + text[at:]
        elif how == 2:
            text = text[:at] + text[to:]
        elif how == 3:
            place = draw.randrange(len(text) + 1)
            text = text[:place] + text[at:to] + text[place:]
        elif how == 4:
            text = _in_a_word(text, draw)
        else:
            text = change(text.encode("utf-8", "replace"), len(text) + 60).decode("utf-8", "replace")
    return text.encode("utf-8", "replace")


def _in_a_word(text: str, draw: Random) -> str:
    """A filter, a method or an operator in place of another."""
    words = (
        "upper",
        "list",
        "length",
        "tojson",
        "join",
        "map",
        "int",
        "string",
        "sort",
        "reverse",
        "batch(3)",
        "center(9)",
        "replace('a','b')",
        "split()",
        "strip()",
        "*",
        "~",
        "+",
        "**",
        "//",
        "%",
        "[0]",
        "[-1:]",
        "range(9)",
        "loop",
        "messages",
        "not",
        "in",
        "is defined",
        "content",
        "role",
        "10**9",
        "-1",
        "none",
        "'x'",
        "namespace()",
    )
    places = [place for place, char in enumerate(text) if char in " .|("]
    if not places:
        return text + draw.choice(words)
    at = draw.choice(places) + 1
    end = at
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    return text[:at] + draw.choice(words) + text[end:]


def read_stored(given: bytes) -> None:
    """A ``template.json``."""
    try:
        stored = parsed(given)
    except ValueError:
        stored = None
    if isinstance(stored, dict) and stored.pop("rehash", False):  # so that more than the hash is looked at
        try:
            template_from(stored, "it")
        except InstilError as error:
            said = str(error).partition("has hash ")[2][:16]
            stored["hash"] = said or stored.get("hash")
    template = template_from(stored, "template.json")
    refused: list[InstilError] = []
    for example in EXAMPLES[:2]:
        try:
            template.pieces(example)
            template.prompt(example)
            if isinstance(template, ChatTemplate):
                template.chat_template()
        except InstilError as error:
            refused.append(error)


def stored() -> list[Any]:
    """Those of the project, and one in Jinja."""
    marks = {"chatml": GOOD[0]}
    jinja = ChatTemplate("chatml", tuple(marks.items()), (("eos_token", "<|im_end|>"),), "<|im_end|>").as_json()
    jinja["templates"] = {"default": GOOD[0]}
    return [{**dict(template.as_json()), "rehash": True} for template in TEMPLATES.values()] + [
        {**jinja, "rehash": True}
    ]


STORED = tree_mutator(
    ("kind", "jinja", "templates", "default", "variables", "stop", "written", "hash", "rehash", True, "<s>"), stored
)
TARGETS = {
    "template": Target(read, lambda: [text.encode() for text in GOOD], mutate, longest=4000),
    "stored_template": Target(read_stored, lambda: [dumped(one) for one in stored()], STORED, longest=8000),
}
