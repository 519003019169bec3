"""All settings of a run, out of defaults, presets, a file and what was chosen by hand.

A setting has one home and one default; an unknown key is refused with the nearest right one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from instil.errors import SettingsError, did_you_mean, parsing_problem
from instil.files import read_parsed
from instil.settings.elsewhere import elsewhere
from instil.settings.losses import read_by
from instil.settings.options import SECTIONS, DpoOptions, LoraOptions, Settings
from instil.settings.presets import AS_IN_BOOK, presets

SHOWN = 60  # characters of an assignment in a message


def known_settings() -> dict[str, str]:
    """Every setting with its default and what it means, for help and messages."""
    return {
        f"{section}.{name}": f"{field.default} ({field.description})"
        for section, options in SECTIONS.items()
        for name, field in options.model_fields.items()
    }


def resolve(
    *,
    as_in_book: bool = False,
    config: Path | None = None,
    assignments: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Settings:
    """Defaults or the book's choices, overridden by a TOML file, then ``key=value`` pairs, then ``values``.

    Preference tuning and adapters have a few defaults of their own, but as in the book.

    >>> resolve(assignments=["train.epochs=3"]).train.epochs
    3
    >>> resolve(assignments=["train.objective=dpo"]).train.learning_rate
    5e-06
    >>> resolve(assignments=["train.method=lora"]).train.learning_rate
    0.001

    Raises:
        SettingsError: a key is unknown, or a value is not of its kind.
    """
    chosen: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if config is not None:
        stored = _toml(config)
        if "instil" in stored and isinstance(stored.get("settings"), dict):
            stored = stored["settings"]  # the run.toml of an earlier run
        for key, value in _flat(stored).items():
            _set(chosen, key, value, str(config))
    for key, value in assigned(assignments).items():
        _set(chosen, key, value, "--set")
    for key, value in _flat(values or {}).items():
        _set(chosen, _full_name(key), value, "settings")
    scaling = chosen["lora"].get("scaling", LoraOptions().scaling)
    adapters = chosen["train"].get("method") == "lora" and scaling == LoraOptions().scaling and not as_in_book
    for table in reversed(presets(chosen, adapters=adapters, as_in_book=as_in_book)):
        for section, values_there in table.items():
            chosen[section] = {**values_there, **chosen[section]}
    try:
        return Settings.model_validate(chosen)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"][:2])
            problems.append(f"{key}={problem['input']!r}: {problem['msg'].removeprefix('Input ')}")
        raise SettingsError("; ".join(problems)) from error


# Sections that have an effect only with one value of a setting of training, and the --method that says so.
SECTIONS_OF: dict[str, tuple[str, str, Callable[[Settings], str]]] = {
    "lora": ("method", "lora", lambda settings: "lora"),
    "dpo": ("objective", "dpo", lambda settings: settings.dpo.loss),
}


def idle(settings: Settings) -> list[str]:
    """A warning for settings that were chosen and have no effect, since the method or loss that they are for was not.

    >>> idle(resolve(assignments=["lora.rank=4"]))
    ['lora.rank has no effect with train.method=full; add --method lora, or leave it out']
    >>> idle(resolve(assignments=["train.objective=dpo", "dpo.gamma=2"]))
    ['dpo.gamma (for simpo) has no effect with dpo.loss=dpo; leave it out']
    """
    said = []
    book = AS_IN_BOOK if "book" in (settings.train.order, settings.train.evaluation) else {}
    for section, (key, needed, method) in SECTIONS_OF.items():
        options: BaseModel = getattr(settings, section)
        chosen = [
            f"{section}.{name}"
            for name, field in type(options).model_fields.items()
            if getattr(options, name) not in (field.default, book.get(section, {}).get(name))
        ]
        given = getattr(settings.train, key)
        if chosen and given != needed:
            have, them = ("has", "it") if len(chosen) == 1 else ("have", "them")
            advice = f"add --method {method(settings)}, or leave {them} out"
            said.append(f"{', '.join(chosen)} {have} no effect with train.{key}={given}; {advice}")
        elif given == needed and isinstance(options, DpoOptions):
            said += _of_other_losses(options, book.get(section, {}))
    return [*said, *_overruled(settings)]


# Settings that another one makes idle: which, when, and what is said of that.
OVERRULED: tuple[tuple[str, tuple[str, ...], Callable[[Settings], str]], ...] = (
    ("train", ("batch_size", "drop_last"),
     lambda settings: f"train.batch_tokens={settings.train.batch_tokens}" if settings.train.batch_tokens else ""),
    ("data", ("split_seed",), lambda settings: "data.split=book" if settings.data.split == "book" else ""),
)  # fmt: skip


def _overruled(settings: Settings) -> list[str]:
    """A warning for settings that were chosen beside one that makes them idle."""
    said = []
    for section, names, overrules in OVERRULED:
        options: BaseModel = getattr(settings, section)
        fields = type(options).model_fields
        chosen = [f"{section}.{name}" for name in names if getattr(options, name) != fields[name].default]
        if chosen and (by := overrules(settings)):
            have, them = ("has", "it") if len(chosen) == 1 else ("have", "them")
            said.append(f"{' and '.join(chosen)} {have} no effect with {by}; leave {them} out")
    return said


def _of_other_losses(options: DpoOptions, book: Mapping[str, Any]) -> list[str]:
    """A warning for settings that the loss does not read.

    A default that was asked for counts, too: ``reduction=sum`` is not what a loss of means does. In the settings of an
    earlier run all stand there, and only those that are not defaults were chosen.
    """
    fields = type(options).model_fields
    given = options.model_fields_set if options.model_fields_set < fields.keys() else set()
    chosen = [
        f"dpo.{name} (for {' and '.join(losses)})"
        for name in fields
        if (losses := read_by(name))
        and options.loss not in losses
        and getattr(options, name) != book.get(name)
        and (name in given or getattr(options, name) != fields[name].default)
    ]
    if not chosen:
        return []
    have, them = ("has", "it") if len(chosen) == 1 else ("have", "them")
    return [f"{', '.join(chosen)} {have} no effect with dpo.loss={options.loss}; leave {them} out"]


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """What ``key=value`` pairs say; the last of equal keys counts.

    >>> assigned(["train.epochs=3"])
    {'train.epochs': 3}

    Raises:
        SettingsError: there is no ``=`` in one.
    """
    found = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment}: wanted key=value, such as --set train.epochs=1")
        try:
            found[key.strip()] = parsed_value(text.strip())
        except (ValueError, RecursionError) as error:
            shown = f"{assignment[:SHOWN]}..."
            raise SettingsError(f"--set {shown}: cannot be read: {parsing_problem(error)}") from error
    return found


def flat_settings(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in sections or by bare names, as a flat table with full names.

    >>> flat_settings({"train": {"seed": 1}, "epochs": 2})
    {'train.seed': 1, 'train.epochs': 2}

    Raises:
        SettingsError: one is given twice, in two forms.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        for name, inner in _flat({key: value}).items():
            full = _full_name(name)
            if full in flat:
                raise SettingsError(f"{full} is given twice; leave one of the two out")
            flat[full] = inner
    return flat


def _set(chosen: dict[str, dict[str, Any]], key: str, value: Any, where: str) -> None:
    section, _, name = key.partition(".")
    if section not in SECTIONS or name not in SECTIONS[section].model_fields:
        known = known_settings()
        leaves = {name.partition(".")[2]: name for name in reversed(known)}
        near = elsewhere(key) or did_you_mean(key, known) or did_you_mean(_full_name(key), known)
        if not near and (close := get_close_matches(key, list(leaves), n=1)):
            near = f"; did you mean {leaves[close[0]]}?"
        raise SettingsError(f"{where}: unknown setting {key!r}{near}")
    chosen[section][name] = value


def _full_name(key: str) -> str:
    """A bare name with its section; ``train`` comes first where two sections share a name.

    >>> _full_name("epochs"), _full_name("seed"), _full_name("template")
    ('train.epochs', 'train.seed', 'data.template')
    """
    if "." in key:
        return key
    for section in ("train", *SECTIONS):
        if key in SECTIONS[section].model_fields:
            return f"{section}.{key}"
    return key


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and (key in SECTIONS or _full_name(key) == key):
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    return flat


def parsed_value(text: str) -> Any:
    """A value as TOML has it, or the bare word.

    >>> parsed_value("1e-4"), parsed_value("true"), parsed_value("cosine"), parsed_value('["###"]'), parsed_value("3#4")
    (0.0001, True, 'cosine', ['###'], '3#4')
    """
    try:
        parsed = toml_table(f"value = {text}")
        whole = "#" not in text or isinstance(parsed["value"], str | list)  # else the rest was taken for a comment
        return parsed["value"] if len(parsed) == 1 and whole else text
    except tomllib.TOMLDecodeError:
        return text


def toml_table(text: str) -> dict[str, Any]:
    """The table that a TOML file holds.

    Raises:
        ValueError, RecursionError: it is not TOML, or holds what no setting can be; see `parsing_problem`.
    """
    found = tomllib.loads(text)
    repr(found)  # dotted keys nest without recursion and 0xff... has no limit; a message could not show either
    return found


def _toml(path: Path) -> dict[str, Any]:
    return read_parsed(path, toml_table, "not valid TOML", error=SettingsError, encoding="utf-8-sig")
