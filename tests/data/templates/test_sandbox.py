"""A template of someone else's can neither run code nor hang nor fill memory, and is otherwise as in transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.templates.allowance import Exhausted
from instil.data.templates.program import LONGEST, Program, dates_in
from instil.data.templates.tracked import Tracked
from instil.errors import DataError

BIG = (
    "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(17) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"  # 1.3 MB
)
DAG = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
HOSTILE = {
    "a long loop": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that chooses": "{% for i in range(99999) if i in range(99999)|list %}{% endfor %}",
    "a text many times": "{{ 'a' * 10**9 }}",
    "a text many times, by steps": "{% set n = 10**9 %}{{ 'a' * n }}",
    "the other way round": "{{ 1000000000 * 'a' }}",
    "a list many times": "{{ ([0] * 10**9)|length }}",
    "powers": "{{ 9**999999999 }}",
    "powers by steps": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "rounded": "{{ 1.5|round(999999999, 'floor') }}",
    "doubled": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by ~": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled by %": (
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}"
    ),
    "doubled by format": (
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}"
    ),
    "doubled by the filter format": (
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = '%s%s'|format(ns.x, ns.x) %}{% endfor %}"
    ),
    "doubled by replace": (
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}"
    ),
    "doubled by join": (
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}"
    ),
    "doubled in a macro": (
        "{% macro two(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='a') %}"
        "{% for i in range(99) %}{% set ns.x = two(ns.x) %}{% endfor %}"
    ),
    "doubled in a block": (
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% set ns.x = y %}{% endfor %}"
    ),
    "a doubled list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a tree that shares": DAG,
    "a tree in dicts": DAG.replace("[ns.x, ns.x]", "{'a': ns.x, 'b': ns.x}"),
    "a tree by dict()": DAG.replace("[ns.x, ns.x]", "dict(a=ns.x, b=ns.x)"),
    "a tree as JSON": DAG + "{{ ns.x|tojson }}",
    "a tree compared": DAG + DAG.replace("ns", "ms") + "{{ ns.x == ms.x }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in two": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format by a star": "{{ '%*d' % (1000000000, 1) }}",
    "a wide str.format": "{{ '{:>1000000000}'.format(1) }}",
    "a nested str.format": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "translate": "{{ 'a'.translate({97: 'a' * 9999}) }}",
    "bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "a wide tojson": "{{ [[1]]|tojson(indent=1000000000) }}",
    "a wide indent": BIG + "{{ 'a\na\na\na\na'|indent(ns.x) }}",
    "a big replacement": BIG + "{{ ns.x|replace('a', ns.x) }}",
    "a big separator": BIG + "{{ ns.x.join('a' * 999) }}",
    "a big text many times": BIG + "{% for i in range(99999) %}{{ ns.x }}{% endfor %}",
    "a big text in a macro": BIG
    + "{% macro f() %}{% for i in range(9999) %}{{ ns.x }}{% endfor %}{% endmacro %}{{ f()|length }}",
    "a big text in a list": BIG + "{{ ([ns.x] * 9999)|string|length }}",
    "a big text mapped": BIG + "{{ range(9999)|map('replace', '1', ns.x)|join|length }}",
    "a big text searched": BIG + "{% for i in range(99999) if ns.x ~ i in ns.x ~ 'b' %}{% endfor %}",
    "slices": BIG + "{% for i in range(9999) %}{% set y = ns.x[i:] %}{% endfor %}",
    "split": BIG + "{% for i in range(999) %}{% set y = ns.x.split('a') %}{% endfor %}",
    "a text in letters": BIG + "{% set y = (messages[0].content * 4000000)|list %}",
    "a text split": "{% set y = (messages[0].content * 4000000).split('x') %}",
    "a text reversed": "{% set y = (messages[0].content * 3000000)[::-1] %}{% set y = y[::-1] %}",
    "the greatest letter": "{% for i in range(99) %}{% set y = (messages[0].content * 30000)|max %}{% endfor %}",
    "big constants": (
        "{% if false %}{{ ('a' * 10000)|replace('a', 'a' * 10000) }}{% endif %}{{ 'a'|replace('a', 'b' * 9**9) }}"
    ),
    "the day, wide": "{{ strftime_now('%1000000000d') }}",
    "nested code": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nested blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "a long chain": "{{ " + "+".join("1" * 20000) + " }}",
    "long code": "a" * (LONGEST + 1),
}
CODE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "the sandbox": "{{ strftime_now.__self__.allowance }}",
    "a function's code": "{{ namespace.__init__.__globals__['__builtins__'] }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('true') }}",
    "format": "{{ '{0.__class__}'.format('') }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "the filter attr": "{{ ''|attr('__class__') }}",
    "the filter map": "{{ ['']|map(attribute='__class__')|list }}",
    "the filter join": "{{ ['']|join(attribute='__class__') }}",
    "a namespace": "{% set ns = namespace(__class__=1) %}",
    "a namespace by item": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "changes": "{{ messages.append(1) }}",
    "clears": "{{ messages[0].clear() }}",
    "a macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "the context": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
    "encode": "{{ 'a'.encode() }}",
    "a filter that is not there": "{{ 'a'|urlize }}",
    "random": "{{ [1, 2]|random }}",
}


def fails(source: str, **values: Any) -> str:
    """What is said of a template that has to be refused or to write nothing of note."""
    try:
        messages = [{"role": "user", "content": Tracked.of("x", (0, "content"))}]
        made = Program(source).render(10, messages=messages, **values)
    except DataError as error:
        return str(error)
    return f"made {made[:40]!r}"


@pytest.fixture(scope="module")
def refusals() -> dict[str, str]:
    """What is said of each in a process that may have no more than 300 MB beyond what it began with."""
    code = (
        "import json, resource\n"
        "from tests.data.templates.test_sandbox import HOSTILE, fails\n"
        "fails('{{ 1 }}')\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))\n"
        "print(json.dumps({name: fails(source) for name, source in HOSTILE.items()}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_can_neither_hang_nor_fill_memory(refusals: dict[str, str], name: str) -> None:
    said = refusals[name]
    assert "stopped" in said or "it fails" in said or "may have" in said, said
    assert "not enough memory" not in said


@pytest.mark.parametrize("name", CODE)
def test_a_template_cannot_run_code(name: str) -> None:
    said = fails(CODE[name])
    assert "it fails" in said or said in ("made ''", "made '[Undefined]'"), said


def test_a_rendering_does_not_pay_for_another() -> None:
    program = Program("{% for i in range(n) %}{% for j in range(1000) %}{% endfor %}{% endfor %}")
    for _ in range(2):
        program.render(0, n=300)
    with pytest.raises(DataError, match="steps"):
        program.render(0, n=3000)
    program.render(10_000, n=600)  # more is given, more may be done


def test_what_may_be_made_grows_with_what_is_given() -> None:
    """A conversation of megabytes is rendered, whatever its length."""
    program = Program("{% for message in messages %}<{{ message.content|trim + '' }}>{% endfor %}")
    long = "x" * 3_000_000
    messages = [{"content": Tracked.of(long, (0, "content"))}, {"content": long}]
    assert len(program.render(2 * len(long), messages=messages)) == 2 * len(long) + 4


AS_THERE = [
    "{{ messages[0]['content'] }} {{ bos_token }}{{ nothing }}",
    "{% for m in messages %}{{ loop.index }}{{ m.role }}{% if loop.last %}!{% endif %}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "{{ {'b': 1, 'a': ['<é>', none, true, 1.5]}|tojson }}",
    "{{ {'b': 1, 'a': ['<é>']}|tojson(indent=2) }}",
    "{{ {'b': 1, 'a': '\u00e9'}|tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
    "{{ messages|tojson|safe }}",
    "{% generation %}x{{ messages[1].content }}{% endgeneration %}y",
    "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}",
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ varargs }}{{ kwargs }}]{% endmacro %}{{ f(1) }}{{ f('a', 'b', 2, z=3) }}",
    "{% set text %}a{{ messages[0].content }}{% endset %}{{ text|trim }}",
    "{% macro f() %}{{ caller(1) }}{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}",
    "{% filter upper %}ab{{ messages[0].content }}{% endfilter %}",
    "{{ '%s is %d%%' % ('a', 5) }}{{ '{} {a!r:>5}'.format(1, a='x') }}{{ '%s-%s'|format('a', 1) }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ 'a' ~ 1 ~ none ~ [1, 'b'] ~ messages[0].content }}",
    "{{ messages[0].content.split('e')[-1].lstrip() }}{{ 'a,b'.split(',') }}{{ ' a '|trim }}{{ 'aXb'.lower() }}",
    "{{ ' \na\nb\n'|indent(2) }}|{{ 'a\n\nb'|indent(2, true, true) }}|{{ 'aab'|replace('a', 'b', 1) }}",
    "{{ [3, 1, 2]|sort|first }}{{ {'b': 1, 'a': 2}|dictsort }}{{ {'a': 1}.items()|list }}{{ 'abc'|reverse }}",
    "{{ (messages[0].content is string) and (nothing is not defined) and ('a' in 'ab') and (1 in [1]) }}",
    "{{ 'x' if messages else 'y' }}{{ messages[::-1][0].content }}{{ messages[1:]|length }}{{ [1] + [2] }}",
    "{{ nothing|default('d') }}{{ ''|default('e', true) }}{{ none|default('f') }}{{ 3.7|int }}{{ '4'|int + 1 }}",
    "{{ dict(a=1) }}{{ range(3)|list }}{{ cycler('a', 'b').next() }}{{ joiner(',')() }}{{ [1, 2, 3]|batch(2)|list }}",
    "{%- for k, v in {'a': 1, 'b': [1, 2]}.items() %}\n  {{ k }}={{ v }}\n{%- endfor %}\n",
    "  {% if true %}\n  x\n  {% endif %}\ny\n\n",
    "{{ 'a<b>' }}{{ messages[0].content|escape }}{{ 'x'|upper|lower|capitalize|title }}{{ '%.2f' % 1.234 }}",
    "{{ messages[0].get('name', 'nobody') }}{{ messages[0].content|length }}{{ messages[5] is defined }}",
]


@pytest.mark.parametrize("source", AS_THERE)
def test_it_renders_as_transformers_does(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": " He said <hé> "}, {"role": "assistant", "content": "Yes, she did."}]
    wanted = render_jinja_template([messages], chat_template=source, bos_token="<s>")[0][0]
    assert Program(source).render(99, messages=messages, bos_token="<s>") == wanted
    tracked = [
        {key: Tracked.of(text, (number, key)) for key, text in message.items()}
        for number, message in enumerate(messages)
    ]
    assert Program(source).render(99, messages=tracked, bos_token="<s>") == wanted


@given(st.text("{}%-|# \nabif(x).'\"0for~[]:,+*in", max_size=40))
def test_no_source_raises_anything_else(source: str) -> None:
    for text in (source, f"{{{{ {source} }}}}", f"{{% {source} %}}"):
        with suppress(DataError):
            Program(text).render(0, messages=[{"content": "x"}], x="y", f=[1])


def test_the_day_is_one_day_for_ever() -> None:
    source = "{{ strftime_now('%d %b %Y') }} {{ strftime_now(format='%Y') if x else strftime_now('%B') }}"
    assert Program("{{ strftime_now('%d %b %Y') }}").render(0) == "26 Jul 2024"
    assert dates_in(source) == ["%d %b %Y", "%B"]


def test_a_refusal_is_said() -> None:
    assert "it refuses this conversation: Only users here" in fails("{{ raise_exception('Only users here') }}")
    assert "it fails: " in fails("{{ 1 + 'a' }}")
    assert "it fails: " in fails("{% for x in %}")
    assert issubclass(Exhausted, Exception)
