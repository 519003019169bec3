"""Whether a run folder holds the run that is wanted, whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instil.errors import DataError, ModelError, RunFolderTaken, SettingsError
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.model.files.safetensors import SafetensorsFile
from instil.runs.facts import FACTS, input_hashes
from instil.runs.folder import OWN_FOLDERS, RUN_FILE, RunFolder
from instil.tasks.task import Prepared

FILES = (RUN_FILE, "split.json", "metrics.jsonl", "loss.png", FACTS, "report.html", "model/config.json")
LATER: dict[str, Any] = {  # settings that earlier versions lack, with what they did
    "train.gradient_checkpointing": False,
    "lora.trainable_token_indices": [],
}
SHOWN = 5  # settings named in a message

State = Literal["finished", "unfinished", "absent"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a run the run it is, as `run.toml` has it. How answers are judged, how often it is saved, or who
    else is told of it, is no part of it.
    """

    settings: dict[str, Any]
    hashes: dict[str, str]

    @staticmethod
    def of(prepared: Prepared) -> Identity:
        """That of a run to be made."""
        return Identity(_shaping(prepared.settings.model_dump(mode="json")), input_hashes(prepared))

    def short(self) -> dict[str, str]:
        """The same in few words, for checkpoints."""
        text = json.dumps(self.settings, sort_keys=True)
        return {**self.hashes, "settings": hashlib.sha256(text.encode()).hexdigest()}

    def differences(self, facts: dict[str, Any]) -> list[str]:
        """In what a finished run is another one."""
        found, own = (_flat(one) for one in (_shaping(facts["settings"]), self.settings))
        found = {**{key: value for key, value in LATER.items() if key in own}, **found}
        lines = [
            f"{key} is {found.get(key)}, now {own.get(key)}"
            for key in dict.fromkeys([*own, *found])
            if found.get(key) != own.get(key)
        ]
        return lines + [f"another {what}" for what, value in self.hashes.items() if facts["hashes"].get(what) != value]


def state_of(folder: RunFolder, wanted: Identity, *, overwrite: bool) -> State:
    """Whether the run is there already.

    Raises:
        RunFolderTaken: it is another run, or no run at all.
    """
    if _leftovers(folder.path) is None:
        folder.check_free(overwrite=True)
    if not (folder.path / RUN_FILE).is_file():
        return "absent"
    if not (folder.path / FACTS).is_file():
        return "unfinished"
    try:
        differences = wanted.differences(folder.read_settings())
    except DataError:
        return "unfinished"
    if differences and not overwrite:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise RunFolderTaken(
            f"{folder.path} holds a finished run that is another one: {'; '.join(differences[:SHOWN])}{more}. "
            "Choose another --out, or add --overwrite"
        )
    return "unfinished" if differences or not is_whole(folder) else "finished"


def is_whole(folder: RunFolder) -> bool:
    """Whether all files of a finished run are there, and the weights are not cut off."""
    try:
        settings, held_out = folder.read_settings()["settings"], folder.held_out_rows()
    except DataError:
        return False
    wanted = [folder.path / name for name in FILES]
    if held_out:
        for which in ("base", "tuned"):
            wanted.append(folder.path / "responses" / f"{which}.json")
            wanted += [folder.path / "scores" / f"{which}.{judge}.jsonl" for judge in (OFFLINE, LIKELIHOOD)]
    if settings.get("train", {}).get("method") == "lora":
        wanted.append(folder.adapter)
    if not all(file.exists() for file in wanted) or not folder.metrics.stat().st_size:
        return False
    try:
        return bool([SafetensorsFile(file) for file in folder.model.glob("*.safetensors")])
    except ModelError:
        return False


def check_same(folder: RunFolder, wanted: Identity) -> None:
    """Whether a run that was begun and is not finished is the one that is to go on.

    Raises:
        RunFolderTaken: it is finished.
        SettingsError: it is another one; the message names the differences.
        DataError: its ``run.toml`` is damaged.
    """
    if differences := wanted.differences(folder.read_settings()):
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise SettingsError(
            f"{folder.path} holds another run, which cannot go on as this one: {'; '.join(differences[:SHOWN])}{more}. "
            "Give it the same data, model and settings, or choose another --out"
        )
    if (folder.path / FACTS).is_file():
        raise RunFolderTaken(f"{folder.path} is finished, so there is nothing to go on with; see {folder.report}")


def clear_leftovers(folder: RunFolder) -> None:
    """Remove what a run leaves that was killed before its first file was written: empty folders."""
    for left in _leftovers(folder.path) or ():
        left.rmdir()


def _leftovers(path: Path) -> list[Path] | None:
    """Those folders; None where there is anything else."""
    if not path.is_dir():
        return None
    found = list(path.iterdir())
    empty = all(one.name in OWN_FOLDERS and one.is_dir() and not any(one.iterdir()) for one in found)
    return found if empty else None


def _shaping(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {name: value for name, value in values.items() if (section, name) != ("train", "save_every")}
        for section, values in settings.items()
        if section not in ("score", "log")
    }


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
