"""Chat templates are programs of someone else's: they run as in `transformers`, but can neither hang nor fill memory.

Jinja's own sandbox keeps a template away from Python's internals. What it leaves open is how long a program runs and
what it makes, so each rendering has an allowance: steps, for every turn of a loop, call, filter and operator, by the
size of what is looked at; characters, for all text that is made; and seconds of the processor, as the last resort.
What would be large is refused before it is made (``"a" * 10 ** 9``, ``9 ** 9 ** 9``, a width of a million). Only
filters and methods that are known to be harmless are there at all. Everything that happens does so in this process
and at any time the same, so that a refusal is the same everywhere.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from instil.data.templates.allowance import WIDEST, Allowance, Exhausted, check_widths
from instil.data.templates.tracked import Tracked, joined, percent_formatted, runs_of, tracked_in, wholly

CLOCK = datetime.datetime(2024, 7, 26)  # the day that templates of Llama 3 write where there is no clock
FORMAT = re.compile(r"(?:%[-_0^#EO]?[a-zA-Z%]|[^%])*")

FILTERS = frozenset(
    "abs attr batch capitalize count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort string "
    "title tojson trim truncate unique upper wordcount".split()
)
BY_LETTER = frozenset("batch groupby list map max min reject reverse select slice sort unique".split())  # of a text
METHODS = {
    str: frozenset(
        "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit "
        "isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
        "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith "
        "strip swapcase title upper zfill".split()
    ),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
}


class Refused(TemplateError):
    """A template called ``raise_exception``."""


class _Codegen(CodeGenerator):
    """Code that shows the environment every value that a template makes."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenated((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")

    def _made(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        visit: Callable[[Any, Frame], None] = super().visit_Getitem
        if isinstance(node.arg, nodes.Slice):
            self._made(visit, node, frame)
        else:
            visit(node, frame)


class Generation(Extension):
    """``{% generation %}`` tells trainers what an answer is; the text is the same without it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Names(Namespace):
    """``namespace()`` without underscores, which does not tell what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        held = dict(*args[1:], **kwargs)
        for name in held:
            _check_name(name)
        Namespace.__init__(args[0], held)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise TemplateError(f"a namespace cannot hold {name!r}")


class Sandbox(ImmutableSandboxedEnvironment):
    """A place for one template."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    code_generator_class = _Codegen

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation], cache_size=0
        )
        self.allowance = Allowance()
        self.finalize = self._finalized
        own: dict[str, Callable[..., Any]] = {
            "tojson": self._tojson,
            "replace": self._replace,
            "join": self._join,
            "indent": self._indent,
            "format": lambda form, *args, **kwargs: self._percent(str(form), kwargs or args),
            "string": self._string,
            "safe": lambda value: value if isinstance(value, Tracked) else Markup(value),
            "trim": lambda value, chars=None: self._string(value).strip(chars),
        }
        usual: dict[str, Any] = {**self.filters, **own}
        self.filters = {name: self._watched(name, filter_) for name, filter_ in usual.items() if name in FILTERS}
        tests: dict[str, Any] = {**self.tests}
        self.tests = {name: self._watched(name, test) for name, test in tests.items()}
        self.globals = {
            **{name: self.globals[name] for name in ("range", "cycler", "joiner")},
            "dict": _Dictionary(),
            "namespace": _Names,
            "raise_exception": _refuse,
            "strftime_now": self._strftime,
        }

    def compiled(self, source: str) -> Any:
        """A template, every loop and macro of which counts its turns."""
        tree = self.parse(source)
        for node in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
            cost = nodes.Const(1 + sum(1 for _ in node.find_all(nodes.Node)) // 8)
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [cost], [], None, None)
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(tick, node.test)
            node.body.insert(0, nodes.ExprStmt(tick))  # type: ignore[attr-defined]
        return self.from_string(tree)

    def tick(self, count: int) -> bool:
        """One turn of a loop."""
        self.allowance.step(count)
        return True

    # What a template makes

    def made(self, value: Any) -> Any:
        """A value that was made; it counts by its size."""
        if isinstance(value, str):
            self.allowance.text(len(value))
        elif isinstance(value, list | tuple | Mapping | set):
            self.allowance.holds(value)
        return value

    def concat(self, parts: Iterable[Any]) -> str:
        found = []
        for part in parts:
            self.allowance.text(len(part) + 1)
            found.append(part)
        return joined(found) if any(isinstance(part, Tracked) for part in found) else "".join(found)

    def concatenated(self, parts: Sequence[Any]) -> str:
        """The operator ``~``."""
        return self.concat([self._string(part) for part in parts])

    def _string(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, list | tuple | Mapping | set):
            self.allowance.text(6 * self.allowance.holds(value)[1])
            return wholly(str(value), value)
        return str(value)

    def _finalized(self, value: Any) -> Any:
        return value if isinstance(value, str) else self._string(value)

    # What it calls

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.allowance.step()
        if operator == "%" and isinstance(left, str):
            return self._percent(left, right)
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    self.allowance.text(len(value) * max(0, times))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > WIDEST:
                raise Exhausted("it computes with a number of more than 3,000 digits")
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        self = __self
        if __obj == self.tick:
            return self.tick(*args)
        self.allowance.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, BuiltinMethodType | MethodType) and not isinstance(owner, Sandbox):
            __obj = self._method(__obj, owner, [*args, *kwargs.values()])
        return self.made(super().call(__context, __obj, *args, **kwargs))

    def _method(self, method: Any, owner: Any, args: Sequence[Any]) -> Any:
        """A method of a text or a list that may be called so; of a text, one that keeps origins."""
        kind = next((kind for kind in METHODS if isinstance(owner, kind)), None)
        name = method.__name__
        if kind is None and type(owner).__module__.startswith("jinja2."):
            return method  # of a loop, a cycler, ...
        if kind is None or name not in METHODS[kind]:
            raise TemplateError(f"the method {name!r} of a {type(owner).__name__} is not for chat templates")
        check_widths(args)
        if not isinstance(owner, str):
            return method
        if name in ("split", "rsplit", "splitlines"):
            sep = args[0] if args and isinstance(args[0], str) else ""
            self.allowance.step(owner.count(sep) if sep else len(owner) // 2)
        if name == "join":
            return lambda parts: self._join(parts, owner)
        if name == "replace":
            return lambda old, new, count=-1: self._replace(owner, old, new, count)
        if not isinstance(owner, Tracked) and tracked_in(args) is not None:
            return getattr(Tracked(owner, runs_of(owner)), name)
        return method

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(value, MethodType | BuiltinMethodType) and value.__name__ in ("format", "format_map"):
            owner: Any = value.__self__
            if isinstance(owner, str):
                return functools.partial(self._format, owner)
        return None

    def _watched(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or a test that counts, and of whose result the origins are known."""
        by_letter = name in BY_LETTER

        @functools.wraps(filter_)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.allowance.step()
            given = [*args, *kwargs.values()]
            check_widths(given[1:])
            for value in given:
                if isinstance(value, list | tuple | dict | range):
                    self.allowance.step(len(value) // 8)
                elif isinstance(value, str):
                    self.allowance.step(len(value) if by_letter else len(value) // 64)
            found = filter_(*args, **kwargs)
            if isinstance(found, str) and not isinstance(found, Tracked) and (tracked_in(given)) is not None:
                found = wholly(found, given)
            return self.made(found)

        return watched

    # Filters and functions of their own

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        depth, length = self.allowance.holds(value)
        width = len(indent) if isinstance(indent, str) else int(indent or 0)
        lines = length // 2 if width else 0
        between = sum(len(str(one)) for one in separators) if separators else 4
        self.allowance.text(6 * length + lines * (width * (depth + 1) + between))
        options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def _replace(self, value: Any, old: Any, new: Any, count: Any = -1) -> str:
        text, old, new = self._string(value), self._string(old), self._string(new)
        times = text.count(old) if old else len(text) + 1
        self.allowance.text(len(text) + times * len(new))
        if tracked_in((text, new)) is None:
            return text.replace(old, new, -1 if count is None else count)
        return Tracked(text, runs_of(text)).replace(old, new, -1 if count is None else count)

    def _join(self, value: Any, d: str = "", attribute: Any = None) -> str:
        parts, between = [], self._string(d)
        for one in value:
            self.allowance.step()
            for name in str(attribute).split(".") if attribute is not None else ():
                one = self.getitem(one, int(name) if name.isdigit() else name)  # noqa: PLW2901
            parts.append(self._string(one))
            self.allowance.text(len(parts[-1]) + len(between) + 1)
        if any(isinstance(part, Tracked) for part in (*parts, between)):
            return joined(parts, between)
        return between.join(parts)

    def _indent(self, value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
        text, margin = self._string(value), width if isinstance(width, str) else " " * int(width)
        lines = text.splitlines()
        self.allowance.text(len(text) + len(lines) * (len(margin) + 1))
        rest = [margin + line if line or blank else line for line in lines[1:]]
        made = joined([*lines[:1], *rest], "\n") if isinstance(text, Tracked) else "\n".join([*lines[:1], *rest])
        if text.endswith("\n") and lines:
            made = made + "\n"
        return margin + made if first else made

    def _percent(self, form: str, values: Any) -> str:
        given = list(values) if isinstance(values, tuple) else [values]
        if "*" in form or re.search(r"%[^a-zA-Z%]*\d{5}", form):
            raise Exhausted("it pads a text by a width")
        for match in re.finditer(r"%(?:\((\w+)\))?", form):
            held = values.get(match[1]) if isinstance(values, Mapping) and match[1] else given
            self.allowance.text(6 * self.allowance.holds(held)[1])
        return percent_formatted(form, values) if tracked_in((form, values)) else form % values

    def _format(self, form: str, *args: Any, **kwargs: Any) -> str:
        """`str.format` with its fields looked up as a template looks them up."""
        fields = SandboxedFormatter(self)
        parts: list[str] = []
        number = 0
        for literal, name, spec, conversion in Formatter().parse(form):
            parts.append(literal)
            if name is None:
                continue
            if "{" in (spec or "") or re.search(r"\d{5}", spec or ""):
                raise Exhausted("it pads a text by a width")
            field = name
            if not name or name[0] in ".[":
                field, number = f"{number}{name}", number + 1
            value, _ = fields.get_field(field, args, kwargs)
            if isinstance(value, str) and not spec and conversion in (None, "s"):
                parts.append(value)
                continue
            self.allowance.text(6 * self.allowance.holds(value)[1])
            parts.append(wholly(format(fields.convert_field(value, conversion), spec or ""), value))
        return self.concat([wholly(part, form) if not isinstance(part, Tracked) else part for part in parts])

    def _strftime(self, form: str) -> str:
        if not FORMAT.fullmatch(form):
            raise TemplateError(f"strftime_now takes letters after %, not {form[:40]!r}")
        return CLOCK.strftime(str.__str__(form))


class _Dictionary:
    """``dict(...)`` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _refuse(message: Any = "") -> None:
    raise Refused(str(message))
