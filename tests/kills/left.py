"""What a run leaves, as far as it is not a time, a date or a picture: by this two runs are compared."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

TIMES = ("seconds", "tokens_per_second")
OF_THE_DAY = ("train_seconds", "seconds", "peak_memory_gb", "own_peak", "outlook")  # in report.json
DRAWN = (".png", ".pdf", ".html", ".md")


def left_by(path: Path) -> dict[str, Any]:
    """The content of every file by its name; of folders that are empty their names."""
    found: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_dir():
            found |= {} if any(file.iterdir()) else {name: "an empty folder"}
        elif name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [{key: line[key] for key in line if key not in TIMES} for line in lines]
        elif name == "report.json":
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key not in OF_THE_DAY}
        elif name == "run.toml":
            found[name] = {key: value for key, value in tomllib.loads(file.read_text()).items() if key != "created"}
        elif name == "status.json":
            found[name] = {key: json.loads(file.read_text())[key] for key in ("state", "why", "done", "planned")}
        elif file.suffix not in DRAWN and name != "data.json":
            found[name] = file.read_bytes()
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of files that are not the same."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
