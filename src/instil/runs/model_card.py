"""The card of an exported model (``README.md``): what it was made of, how, and what it scored, in the hub's form.

The head is what the hub reads (YAML): base model, its licence where that is known, data set, library, kind of work,
tags. What is said of the rows' licence stands in the text alone, since it is none of a model; paths of a machine stand
nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instil.data.files.hub import FORM
from instil.errors import DataError, counted
from instil.evaluate.comparison import compare_verdicts
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.statistics import interval
from instil.model.find import NAMED
from instil.records import Verdict
from instil.runs.answers import OWN, find_answers, read_verdicts
from instil.runs.folder import RunFolder
from instil.settings.asking import ScoreOptions
from instil.settings.options import Settings

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
METRICS = {"exact match, %": ("exact_match", 100.0), "chrF": ("chrf", 1.0), "agreement, 0 to 100": ("", 1.0)}


def model_card(run: RunFolder) -> str:
    """The text of the card of a run's model.

    Raises:
        DataError: a file of the run is damaged.
    """
    facts, data = run.read_settings(), run.read_card() or {}
    settings = facts["settings"]
    base, method = str(facts.get("model", "")), str(settings.get("train", {}).get("method", "full"))
    task = str(data.get("task", settings.get("train", {}).get("objective", "sft")))
    licence = NAMED[base].licence if base in NAMED else ""
    head = {
        "license": licence,
        "base_model": base_on_hub(base),
        "datasets": list(filter(None, [data_on_hub(str(facts["data"]))])),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["instil", task, *(["lora"] if method == "lora" else [])],
    }
    name = Path(base).name
    how = "with adapters (LoRA), merged into it" if method == "lora" else "in full"
    lines = [
        "---",
        *_yaml(head),
        "---",
        "",
        f"# {name}, tuned with instil",
        "",
        f"{name} was tuned {how} on {_rows(data)}. Rows were put to it in the form `{settings['data']['template']}`, "
        "which the chat template of this folder writes.",
        "",
        *_scores(run),
        *_judged(run),
        "## Data",
        "",
        *_data(facts, data),
        "",
        "## Settings that differ from the defaults",
        "",
        *_settings(settings),
        "",
        "## Licences",
        "",
        f"- of the rows: {data.get('licence', 'not stated')}",
        f"- of the model: that of its base, {base_on_hub(base) or name}{f' ({licence})' if licence else ''}; see there",
        "",
        f"Made with instil {facts.get('instil', '')} and torch {facts.get('versions', {}).get('torch', '')}.",
        "",
    ]
    return "\n".join(lines)


def base_on_hub(model: str) -> str:
    """The id of a base model on the hub; empty where it has none that is known.

    >>> base_on_hub("gpt2-medium"), base_on_hub("Qwen/Qwen3-0.6B"), base_on_hub("./models/mine")
    ('openai-community/gpt2-medium', 'Qwen/Qwen3-0.6B', '')
    """
    if model in NAMED:
        return NAMED[model].hub_id
    return model if HUB_ID.fullmatch(model) and not model.startswith(".") and not Path(model).exists() else ""


def data_on_hub(data: str) -> str:
    """The id of a data set on the hub; empty where it is elsewhere.

    >>> data_on_hub("hf:owner/rows@v1:main/test"), data_on_hub("./rows.json")
    ('owner/rows', '')
    """
    found = FORM.fullmatch(data)
    return found["repository"] if found else ""


def _yaml(head: Mapping[str, str | Sequence[str]]) -> list[str]:
    """Names and lists of names, which need no quotes; what is empty is left out."""
    lines = []
    for key, value in head.items():
        if isinstance(value, str):
            lines += [f"{key}: {value}"] if value else []
        else:
            lines += [f"{key}:", *(f"- {one}" for one in value)] if value else []
    return lines


def _rows(data: Mapping[str, Any]) -> str:
    count = data.get("rows", {}).get("train")
    return counted(count, "row") if isinstance(count, int) else "rows"


def _scores(run: RunFolder) -> list[str]:
    """Scores of the held-out rows before and after, with intervals, and the verdict; nothing for a run without."""
    found = _verdicts(run)
    if not found:
        return []
    held_out = counted(len(found["tuned"]), "held-out row")
    lines = [
        "## Scores",
        "",
        f"On {held_out}, {compare_verdicts(found['base'], found['tuned']).sentence('before', 'after')}",
        "",
        "| mean [95 % interval] | before | after |",
        "| --- | --- | --- |",
    ]
    for label, (metric, scale) in METRICS.items():
        values = [interval(_values(found[which], metric, scale)) for which in OWN]
        lines.append(f"| {label} | {' | '.join(value.text() if value else 'not scored' for value in values)} |")
    return [*lines, "", "Answers are compared with the references by words and letters, without a judge.", ""]


def _judged(run: RunFolder) -> list[str]:
    """What other models said as judges, where they were asked of both."""
    lines = []
    for file in sorted((run.path / "scores").glob("tuned.*.jsonl")):
        other = file.with_name(f"base.{file.name.removeprefix('tuned.')}")
        if not other.is_file() or file.stem.removeprefix("tuned.") in (OFFLINE, LIKELIHOOD):
            continue
        before, after = read_verdicts(other), read_verdicts(file)
        means = [interval([one.score for one in each if one.score is not None]) for each in (before, after)]
        if not all(means):
            continue
        said = " and ".join(mean.text() for mean in means if mean)
        judge = _name_of(after[0].judge)
        lines.append(
            f"- {judge}: {said} of 100 before and after; {compare_verdicts(before, after).sentence('before', 'after')}"
        )
    return ["Judged by other models (mean [95 % interval]):", "", *lines, ""] if lines else []


def _name_of(judge: str) -> str:
    """A judge without the place of its file."""
    return Path(judge).name if judge.startswith(("/", ".", "~")) else judge


def _verdicts(run: RunFolder) -> dict[str, list[Verdict]]:
    try:
        found = {one.which: one for one in find_answers(run.path, only=OWN) if one.which in OWN}
        if found.keys() != set(OWN):
            return {}
        return {which: read_verdicts(one.verdicts_at(OFFLINE, ScoreOptions())) for which, one in found.items()}
    except DataError:  # of training alone, or answered and not scored
        return {}


def _values(verdicts: Sequence[Verdict], metric: str, scale: float) -> list[float]:
    scored = [verdict for verdict in verdicts if verdict.score is not None]
    return [(verdict.metrics[metric] if metric else verdict.score or 0.0) * scale for verdict in scored]


def _data(facts: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    rows, lengths, tokens = (data.get(key, {}) for key in ("rows", "lengths", "tokens"))
    said = {
        "rows": ", ".join(f"{rows[part]:,} {part}" for part in ("train", "test", "validation") if part in rows),
        "name": Path(str(facts["data"])).name,
        "tokens of training rows": f"{tokens['training_rows']:,}, of which {tokens['targets']:,} are targets"
        if tokens.keys() >= {"training_rows", "targets"}
        else "",
        "tokens of a row": f"{lengths['mean']} on average, at most {lengths['longest']}"
        if lengths.keys() >= {"mean", "longest"}
        else "",
        "left out": f"{data['rejected'].get('left out', 0):,} rows, and {data['rejected'].get('cut', 0):,} were cut"
        if any(data.get("rejected", {}).get(kind) for kind in ("left out", "cut"))
        else "",
        "held-out prompts that are training rows', too": str(
            data.get("repeated", {}).get("held_out_prompts_in_training") or ""
        ),
        "hash of the rows": f"`{facts['hashes'].get('data', '')}`",
    }
    return [f"- {key}: {value}" for key, value in said.items() if value]


def _settings(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    usual = Settings().model_dump(mode="json")
    changed = [
        f"- `{section}.{name}`: `{Path(value).name if isinstance(value, str) and '/' in value else value}`"
        for section, values in settings.items()
        for name, value in values.items()
        if name in usual.get(section, {}) and value != usual[section][name] and (section, name) != ("data", "licence")
    ]
    return changed or ["none"]
