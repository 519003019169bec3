"""The figures that README tells: each is made by a command, kept in ``docs/figures.json``, and written to its place.

``python -m benchmarks.figures`` (``make figures``) writes what is kept between the marks of README and docs.
``--run NAME`` measures a figure anew before that: with ``--seeds``, ``--data`` and ``--set`` where it takes runs of
instil; ``speed`` reads files of ``benchmarks/results``, which ``make bench-train`` and its like write. ``--check`` says
which marks are not what is kept, and which sentences of README hold a figure that does not come from here; it ends with
1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.calibrate import CHOSEN, cross_validate, read
from benchmarks.machine import hardware
from benchmarks.speeds import collected, speed_table
from instil.runs.answers import OTHER_FORM

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "figures.json"
EACH_SEED = ", with each seed"
MARKED = re.compile(r"(<!-- figure: (\w+) -->\n).*?(<!-- end of figure -->)", re.DOTALL)
# What a measured figure looks like in a sentence: a number with a unit or a decimal, or a share in words.
MEASURED = re.compile(
    r"\d[\d.,]*\s?(?:%|GB|MB|ms\b|seconds|minutes|hours|points|times\b)|(?<![\d.])\d+\.\d+(?![\d.]*\d)"
    r"|\b(?:a|one|two|three) (?:half|third|quarter|fifth|tenth)s?\b|\b[Hh]alf as\b|\b[Tt]wice as\b|\b\w+ minutes\b"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What is kept of a figure: its values, and how they came about.

    ``taken_from`` says where values are from that the command has not written: a page or a file of the repository.
    """

    command: str
    processor: str
    seeds: tuple[int, ...]
    date: str
    values: Mapping[str, Any]
    taken_from: str = ""
    files: tuple[str, ...] = field(default=())

    @property
    def where(self) -> str:
        """The processor, the seeds and the date, as they stand in README."""
        return ", ".join([self.processor, *([_seeds(self.seeds)] if self.seeds else []), self.date])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, and write or check the marks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__.split("\n")[0])
    parser.add_argument("--run", nargs="+", default=[], choices=list(FIGURES), metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--check", action="store_true", help="write nothing, and say what is not as it is kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of runs; default 1 2 3")
    parser.add_argument(
        "--add", action="store_true", help="to the seeds of the headline that are kept, not in their place"
    )
    parser.add_argument("--data", help="the rows in place of the figure's own: a file")
    parser.add_argument("--model", help="the model in place of the figure's own")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of runs; they are kept, too"
    )
    parser.add_argument("--results", nargs="+", type=Path, help="files for speed; default those that are kept")
    asked = parser.parse_args(arguments)
    kept, exempt = read_kept(KEPT)
    for name in asked.run:
        found = FIGURES[name][0](asked, kept)
        kept[name] = added(kept[name], found) if asked.add else found
        write_kept(KEPT, kept, exempt)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    wrong = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        rendered = marked(text, kept)
        if asked.check and rendered != text:
            wrong += 1
            print(f"{page.relative_to(ROOT)}: its marked parts are not what {KEPT.name} gives; run make figures")
        elif rendered != text:
            page.write_text(rendered, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} written")
    if asked.check:
        left = unmarked((ROOT / "README.md").read_text(encoding="utf-8"), exempt)
        for sentence in left:
            print(f"README.md, a figure that no command writes: {sentence}")
        wrong += len(left)
    return int(wrong > 0)


def added(before: Figure, more: Figure) -> Figure:
    """A figure of runs with further seeds.

    >>> one, other = (Figure("x", "y", (seed,), "z", {"a": {"b": [seed / 2]}, "rows": 9}) for seed in (1, 2))
    >>> both = added(one, other)
    >>> both.seeds, both.values
    ((1, 2), {'a': {'b': [0.5, 1.0]}, 'rows': 9})
    >>> added(both, replace(other, processor="w", seeds=(3,))).where
    'y, and w for seed 3, seeds 1, 2, 3, z'

    Raises:
        SystemExit: they are of other commands, or share a seed.
    """

    def joined(old: Any, new: Any) -> Any:
        if isinstance(old, Mapping):
            return {key: joined(old[key], new[key]) for key in old}
        return [*old, *new] if isinstance(old, list) else new

    commands = {one.command.removesuffix(EACH_SEED) for one in (before, more)}
    unlike = len(commands) > 1 or before.values.keys() != more.values.keys()
    if unlike or set(before.seeds) & set(more.seeds):
        raise SystemExit(f"cannot be added: {before.command} ({before.where}) and {more.command} ({more.where})")
    where = before.processor
    if more.processor != where:
        where += f", and {more.processor} for {_seeds(more.seeds)}"
    return replace(
        more,
        command=f"{commands.pop()}{EACH_SEED}",
        processor=where,
        seeds=(*before.seeds, *more.seeds),
        values=joined(before.values, more.values),
    )


def read_kept(path: Path) -> tuple[dict[str, Figure], dict[str, str]]:
    """Figures by their names, and what looks like one in README and is none, with the reason."""
    found = json.loads(path.read_text(encoding="utf-8"))
    figures = {
        name: Figure(**{**one, "seeds": tuple(one["seeds"]), "files": tuple(one.get("files", ()))})
        for name, one in found["figures"].items()
    }
    return figures, found["no_figures"]


def write_kept(path: Path, figures: Mapping[str, Figure], exempt: Mapping[str, str]) -> None:
    """The same, to the file."""
    whole = {"figures": {name: asdict(one) for name, one in figures.items()}, "no_figures": dict(exempt)}
    path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def marked(text: str, kept: Mapping[str, Figure]) -> str:
    """A page with its marked parts as what is kept gives them."""

    def written(found: re.Match[str]) -> str:
        return f"{found[1]}{FIGURES[found[2]][1](kept[found[2]]).strip()}\n{found[3]}"

    return MARKED.sub(written, text)


def unmarked(text: str, exempt: Mapping[str, str]) -> list[str]:
    """Sentences, and rows of tables, with a figure outside of all marks; code and what is exempt aside.

    >>> unmarked("It is 3.5 times as fast. It takes Python 3.11. `x=0.5` is a setting.", {"Python 3.11": "a version"})
    ['It is 3.5 times as fast.']
    """
    text = MARKED.sub("", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)
    blocks = re.split(r"\n\s*\n|\n(?=\||[-*] )", text)
    pieces = [piece for block in blocks for piece in re.split(r"(?<=[.!?:])\s+(?=[A-Z*\"])", block)]
    found = []
    for piece in pieces:
        plain = " ".join(piece.split())
        rest = plain
        for phrase in exempt:
            rest = rest.replace(phrase, "")
        if MEASURED.search(rest):
            found.append(plain)
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """One value, or the mean of several and their standard deviation.

    >>> spread([28.23]), spread([65.0, 66.0, 67.0])
    ('28.2', '66.0 ± 1.0')
    """
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


# The figures: how each is measured, and how it is told.


def run_headline(asked: argparse.Namespace, kept: Mapping[str, Figure]) -> Figure:
    """The default command, once for each seed. How long it takes is not told, so the machine need not be quiet."""
    figure = _runs(asked, asked.data or "book", "instil run book --model smollm2-135m", asked.set)
    return replace(figure, values={name: value for name, value in figure.values.items() if name != "minutes"})


def run_demo(asked: argparse.Namespace, kept: Mapping[str, Figure]) -> Figure:
    """What `make demo` runs, with its one seed; how long it took on other processors is kept beside it."""
    demo = re.search(r"^DEMO +\?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    given = re.findall(r"--set (\S+)", demo[1]) if demo else []
    asked = argparse.Namespace(**{**vars(asked), "seeds": [123]})
    figure = _runs(asked, asked.data or "starter", "make demo", [*given, *asked.set])
    figure = replace(figure, command=" ".join(["make demo", *(f"with {one}" for one in asked.set)]))
    return replace(figure, values={**figure.values, "elsewhere": minutes_elsewhere(kept.get("demo"), figure)})


def minutes_elsewhere(before: Figure | None, figure: Figure) -> dict[str, float]:
    """How many minutes the demo took on processors other than that of its figure.

    >>> one, other = (Figure("make demo", name, (1,), "z", {"minutes": [m]}) for name, m in (("x", 6.1), ("y", 15.4)))
    >>> minutes_elsewhere(one, other), minutes_elsewhere(one, one), minutes_elsewhere(None, one)
    ({'x': 6.1}, {}, {})
    """
    if before is None:
        return {}
    how = before.command.removeprefix("make demo").strip()
    named = ", ".join([before.processor, *([how] if how else [])])
    known = {**before.values.get("elsewhere", {}), named: before.values["minutes"][0]}
    return {name: minutes for name, minutes in known.items() if not name.startswith(figure.processor)}


def run_memory(asked: argparse.Namespace, kept: Mapping[str, Figure]) -> Figure:
    """Peaks and times of training with and without checkpointing, in full and with adapters."""
    values: dict[str, Any] = {}
    for method in ("full", "lora"):
        for checkpointing in (False, True):
            settings = [f"train.method={method}", f"train.gradient_checkpointing={str(checkpointing).lower()}"]
            settings += ["train.max_steps=24", "train.seed=123", *asked.set]
            told = tell("train", asked.data or "starter", asked.model or "gpt2-small", settings)
            values[f"{method}{', checkpointing' if checkpointing else ''}"] = {
                "peak_gb": told["peak_memory_gb"], "seconds": told["seconds"]["train"],
            }  # fmt: skip
    model = Path(asked.model).name if asked.model else "gpt2-small"
    command = f"instil train starter --model {model} --set train.max_steps=24, with each method and checkpointing"
    return Figure(command, processor(), (123,), today(), values)


def run_speed(asked: argparse.Namespace, kept: Mapping[str, Figure]) -> Figure:
    """From the files of `benchmarks/results`."""
    files = asked.results or [ROOT / name for name in kept["speed"].files]
    values, told = collected(files)
    names = tuple(str(Path(file).resolve().relative_to(ROOT)) for file in files)
    command = "make bench-train, make bench-prefer, make bench-answer"
    return Figure(command, told["processor"], (), told["date"], values, ", ".join(names), names)


def run_calibration(asked: argparse.Namespace, kept: Mapping[str, Figure]) -> Figure:
    """Cross-validation over what is kept of the judged answers."""
    judged = read(Path(asked.data) if asked.data else ROOT / "tests" / "evaluate" / "judged_features.json")
    pearson, auc, hard = cross_validate(judged, CHOSEN, repeats=200).mean(axis=0)
    values = {
        "answers": len(judged.scores_R),
        "pearson": round(pearson, 3),
        "auc": round(auc, 3),
        "hard": round(hard, 3),
    }
    command = "python -m benchmarks.calibrate tests/evaluate/judged_features.json"
    return Figure(command, processor(), (0,), today(), values)


def _runs(asked: argparse.Namespace, data: str, command: str, settings: Sequence[str]) -> Figure:
    """Runs with each seed: their scores, verdicts, and how long they took."""
    values: dict[str, Any] = {"before": {}, "after": {}, "echo": {}, "verdicts": [], "minutes": []}
    for seed in asked.seeds:
        told = tell("run", data, asked.model or "smollm2-135m", [f"train.seed={seed}", *settings])
        named = {"before": "base", "after": "tuned", "echo": "echo"}
        named |= {
            f"before, in {one.removeprefix(OTHER_FORM)}": one for one in told["scores"] if one not in named.values()
        }
        for name, which in named.items():
            values.setdefault(name, {})
            for metric, scale in (("exact_match", 100.0), ("chrf", 1.0), ("score", 1.0)):
                values[name].setdefault(metric, []).append(round(scale * told["scores"][which][metric], 2))
        values["verdicts"].append(re.sub(r"; \d+ rows\)", ")", told["verdict"]))
        values["minutes"].append(round(sum(told["seconds"].values()) / 60, 1))
        values["rows"] = told["rows"]
    settings = [one for one in settings if one not in command]
    shown = " ".join([command, *(f"--set {one}" for one in settings)])
    return Figure(f"{shown}{EACH_SEED * (len(asked.seeds) > 1)}", processor(), tuple(asked.seeds), today(), values)


def tell(verb: str, data: str, model: str, settings: Sequence[str]) -> dict[str, Any]:
    """What a run of instil in a process of its own says, and how many rows it held out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [sys.executable, "-m", "instil.cli", verb, data, "--model", model, "--out", str(out), "--json"]
        done = subprocess.run(
            [*words, *(word for one in settings for word in ("--set", one))], stdout=subprocess.PIPE, check=True
        )
        split = json.loads((out / "split.json").read_text(encoding="utf-8"))
        return {**json.loads(done.stdout), "rows": len(split["test"] or split["validation"])}


def processor() -> str:
    """This machine's, with the number of cores in use."""
    told = hardware()
    generation = f" ({told['architecture']})" if told["architecture"] else ""
    return f"{told['cpu']}{generation}, {told['cores']} core{'s' * (told['cores'] != 1)}"


def today() -> str:
    """The date."""
    return datetime.now(UTC).date().isoformat()


def tell_headline(figure: Figure) -> str:
    """The table before and after, with the spread over seeds, and what the verdicts say."""
    values = figure.values
    others = [(f"{name}*", name) for name in values if name.startswith("before, in ")]
    rows = [*others, ("before", "before"), ("after", "after"), ("the input repeated", "echo")]
    said = f"{values['rows']} test rows{values.get('besides', '')}; {figure.where}"
    several = len(values["verdicts"]) > 1
    which = f" (seed {figure.seeds[0]}; {_better(values['verdicts'])})" if several else ""
    lines = [
        _filled(f"On the book's 1,100 rows{' with the defaults' * ('--set' not in figure.command)} ({said}):"),
        "",
        "| | exact match | chrF | agreement, 0 to 100 |",
        "| --- | --- | --- | --- |",
    ]
    for name, key in rows:
        exact, chrf, score = (spread(values[key][metric]) for metric in ("exact_match", "chrf", "score"))
        lines.append(f"| {name} | {exact} % | {chrf} | {score} |")
    if others:
        lines += ["", "\\* The model is asked in two prompt forms before training; the better one counts as before."]
    return "\n".join([*lines, "", f'"{_sentence(values["verdicts"][0])}."{which}'])


def tell_demo(figure: Figure) -> str:
    """What a newcomer is told of the demo."""
    values = figure.values
    exact, chrf = ([spread(values[when][name]) for when in ("before", "after")] for name in ("exact_match", "chrf"))
    form = ", asked in the run's form alone," if "generate.before=same" in figure.command else ""
    elsewhere = "".join(f"; {minutes:.0f} on {name}" for name, minutes in values.get("elsewhere", {}).items())
    return _filled(
        f"On the {values['rows']} held-out rows the answers of the base model{form} agree with the reference to the "
        f"last letter in {exact[0]} %, those of the tuned one in {exact[1]} %; mean chrF goes from {chrf[0]} to "
        f"{chrf[1]}. "
        f'"{_sentence(values["verdicts"][0])}", says the report. The whole of it, installing aside, takes about '
        f"{values['minutes'][0]:.0f} minutes ({figure.where}{elsewhere})."
    )


def tell_memory(figure: Figure) -> str:
    """Peaks, and what checkpointing costs."""
    values = figure.values
    full, lora = (values[f"{name}, checkpointing"]["seconds"] / values[name]["seconds"] for name in ("full", "lora"))
    peak = {name: f"{one['peak_gb']:.1f}" for name, one in values.items()}
    return _filled(
        f"A step takes {full:.2f} times as long in full, {lora:.1f} times with adapters. The largest memory of "
        f"`instil train` with GPT-2 124M, everything counted: {peak['full']} GB in full, {peak['lora']} GB with "
        f"adapters, {peak['lora, checkpointing']} GB with both ({figure.where})."
    )


def tell_speed(figure: Figure) -> str:
    """The table of ratios."""
    return speed_table(figure.values, figure.where)


def tell_calibration(figure: Figure) -> str:
    """How far the figure without a judge follows GPT-4."""
    values = figure.values
    return _filled(
        f"Without a judge the figure of 0 to 100 is calibrated on {values['answers']} answers that GPT-4 has scored "
        "(an exact copy of the reference is 100, an empty answer 0): in cross-validation its correlation with GPT-4 is "
        f"{values['pearson']:.2f}, among answers that are no copies {values['hard']:.2f}."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _sentence(verdict: str) -> str:
    return f"{verdict[0].upper()}{verdict[1:].rstrip('.')}"


def _filled(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _better(verdicts: Sequence[str]) -> str:
    count = sum(" is better than " in f" {verdict} " for verdict in verdicts)
    return f"better with {'every seed' if count == len(verdicts) else f'{count} of {len(verdicts)} seeds'}"


Run = Callable[[argparse.Namespace, Mapping[str, Figure]], Figure]
FIGURES: dict[str, tuple[Run, Callable[[Figure], str]]] = {
    "demo": (run_demo, tell_demo),
    "headline": (run_headline, tell_headline),
    "memory": (run_memory, tell_memory),
    "speed": (run_speed, tell_speed),
    "calibration": (run_calibration, tell_calibration),
}


if __name__ == "__main__":
    sys.exit(main())
