"""The file of a sweep: which runs there are, checked whole before any work.

::

    data = "starter"            # and model, out, judge; these are the defaults
    [settings]                  # of all runs
    train.epochs = 2
    [[run]]                     # name, and what is different: data, model, settings
    name = "phi3"
    settings.data.template = "phi3"
    [grid]                      # a setting or model, and its values: every combination is a run
    train.seed = [1, 2, 3]      # with [[run]] tables, each of them is made at every point of the grid
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from instil.errors import SettingsError, did_you_mean, listed
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.files import read_parsed
from instil.settings.elsewhere import elsewhere
from instil.settings.options import SECTIONS, Settings
from instil.settings.resolve import assigned, flat_settings, known_settings, resolve, toml_table

TOP = {"data": str, "model": str, "out": str, "judge": str, "settings": dict, "run": list, "grid": dict}
OF_A_RUN = {"name": str, "data": str, "model": str, "settings": dict}
KINDS: dict[type, str] = {str: "a text", dict: "a table", list: "an array of tables ([[run]])"}
DATA, MODEL = "starter", "smollm2-135m"
LONGEST = 80  # bytes of a run's folder
MOST = 1000  # runs


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run to be made: its name, the name of its folder, and what it is made of."""

    name: str
    folder: str
    data: str
    model: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class SweepFile:
    """What a file asks for."""

    path: Path
    runs: tuple[PlannedRun, ...]
    out: Path
    judge: str


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says, for all runs. ``data`` and ``model`` stand in for those at the top of the file."""

    data: str | None = None
    model: str | None = None
    out: Path | None = None
    judge: str | None = None
    assignments: Sequence[str] = ()
    as_in_book: bool = False


def read_sweep(path: Path, over: Overrides | None = None) -> SweepFile:
    """Read the file and settle every run of it.

    Raises:
        SettingsError: something in it cannot be used; the message names the run.
    """
    over = over or Overrides()
    found = read_parsed(path, toml_table, "not valid TOML", error=SettingsError, encoding="utf-8-sig")
    _check_keys(found, TOP, str(path), "at the top of the file")
    listed_runs = _listed(found.get("run", []), path)
    axes = _axes(found.get("grid", {}), path)
    if not listed_runs and not axes:
        raise SettingsError(f"{path}: no runs in it; wanted [[run]] tables, a [grid] of values, or both")
    count = (len(listed_runs) or 1) * math.prod(map(len, axes.values()))
    if count > MOST:
        raise SettingsError(f"{path}: {count:,} runs; wanted at most {MOST:,}")
    data = over.data or found.get("data", DATA)
    model = over.model or found.get("model", MODEL)
    points = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
    common = _named_in_full(found.get("settings", {}), f"{path}, [settings]")
    runs = []
    for one in listed_runs or [{}]:
        for point in points:
            name = " ".join(filter(None, [one.get("name", ""), _point_name(point)]))
            own = _named_in_full(one.get("settings", {}), f"{path}, run {name!r}")
            chosen = {**common, **own, **point}
            runs.append(
                PlannedRun(
                    name=name,
                    folder=slug(name),
                    data=chosen.pop("data", one.get("data", data)),
                    model=chosen.pop("model", one.get("model", model)),
                    settings=_resolved(chosen, over, f"{path}, run {name!r}"),
                )
            )
    _check_names(runs, path)
    _check_repeats(runs, path)
    out = over.out or Path(found.get("out", Path("runs") / path.stem))
    return SweepFile(path, tuple(runs), out, over.judge or found.get("judge", OFFLINE))


def slug(name: str) -> str:
    """A run's name as that of a folder; of a long one the beginning, and a hash by which it differs from others.

    >>> slug("LoRA, rank 8"), slug("../x"), slug("seed=1")
    ('LoRA-rank-8', 'x', 'seed=1')
    """
    text = re.sub(r"[^\w.=+-]+", "-", unicodedata.normalize("NFC", name))
    text = re.sub(r"-{2,}", "-", text).strip("-.")
    if len(text.encode()) <= LONGEST:
        return text
    known = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{text.encode()[: LONGEST - 9].decode(errors='ignore').strip('-.')}-{known}"


def _check_keys(table: Mapping[str, Any], known: Mapping[str, type], file: str, where: str) -> None:
    for key, value in table.items():
        if key not in known:
            hint = did_you_mean(key, known)
            if not hint and (key in SECTIONS or flat_settings({key: 0}).keys() & known_settings().keys()):
                hint = "; settings belong under [settings]" if known is TOP else f"; write settings.{key}"
            raise SettingsError(f"{file}: unknown key {key!r} {where}{hint or '; known are ' + ', '.join(known)}")
        if not isinstance(value, known[key]):
            raise SettingsError(f"{file}: {key}={value!r} {where}: wanted {KINDS[known[key]]}")
        if isinstance(value, str) and not value.strip():
            raise SettingsError(f"{file}: {key} is empty {where}")
        if isinstance(value, str) and "\0" in value:
            raise SettingsError(f"{file}: {key}={value!r} {where}: wanted a text without a zero character")


def _listed(tables: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    """The tables under [[run]], each with a name of its own."""
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: run={table!r}: wanted tables, each under [[run]]")
        _check_keys(table, OF_A_RUN, str(path), f"in [[run]] {number}")
        if "name" not in table:
            raise SettingsError(f"{path}: [[run]] {number} has no name")
    return list(tables)


def _axes(grid: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    """What the grid varies, each with its values; the last changes fastest."""
    whole = {key: value for key, value in grid.items() if key in ("model", "data") and not isinstance(value, dict)}
    rest = {key: value for key, value in grid.items() if key not in whole}
    axes = {**whole, **_named_in_full(rest, f"{path}, [grid]")}
    known = {**known_settings(), "model": "", "data": ""}
    for key, values in axes.items():
        if key not in known:
            raise SettingsError(
                f"{path}: unknown setting {key!r} in [grid]{elsewhere(key) or did_you_mean(key, known)}"
            )
        if not isinstance(values, list) or not values:
            raise SettingsError(f"{path}: {key}={values!r} in [grid]: wanted a list of values, such as [1, 2]")
        if key in whole and not all(isinstance(value, str) and value.strip() for value in values):
            raise SettingsError(f"{path}: {key}={values!r} in [grid]: wanted a list of texts")
    return axes


def _named_in_full(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings by their full names."""
    try:
        return flat_settings(table)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error


def _point_name(point: Mapping[str, Any]) -> str:
    """What the runs of a grid are called: each value with the last part of its setting's name, if that is enough.

    >>> _point_name({"train.learning_rate": 1e-4, "train.seed": 1, "generate.seed": 2})
    'learning_rate=0.0001 train.seed=1 generate.seed=2'
    """
    leaves = [key.rpartition(".")[2] for key in point]
    return " ".join(
        f"{leaf if leaves.count(leaf) == 1 else key}={_value_name(key, value)}"
        for (key, value), leaf in zip(point.items(), leaves, strict=True)
    )


def _value_name(key: str, value: Any) -> str:
    if key in ("model", "data"):
        return Path(value).name or value
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _resolved(chosen: Mapping[str, Any], over: Overrides, where: str) -> Settings:
    """Settings of one run: what the command line says wins."""
    for_all = assigned(over.assignments)
    resolve(assignments=over.assignments)  # whose mistakes are not the file's
    try:
        return resolve(as_in_book=over.as_in_book, values={**chosen, **for_all})
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error


def _check_names(runs: Sequence[PlannedRun], path: Path) -> None:
    seen: dict[str, PlannedRun] = {}
    names: set[str] = set()
    for run in runs:
        if run.name in names:
            raise SettingsError(f"{path}: two runs are named {run.name!r}")
        names.add(run.name)
        if not run.folder or run.folder.casefold().startswith(("sweep.", "loss.")):
            raise SettingsError(f"{path}: run {run.name!r} cannot be the name of a folder here; choose another")
        other = seen.setdefault(run.folder.casefold(), run)
        if other is not run:
            raise SettingsError(f"{path}: runs {other.name!r} and {run.name!r} would have the same folder {run.folder}")


def _check_repeats(runs: Sequence[PlannedRun], path: Path) -> None:
    """No run is made twice."""
    repeated = []
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if (run.data, run.model, run.settings) == (other.data, other.model, other.settings):
                repeated.append(f"{run.name} is the same run as {other.name}")
                break
    if repeated:
        raise SettingsError(f"{path}: runs repeat one another\n{listed(repeated)}")
