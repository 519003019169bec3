"""Whether a run folder holds the run that is wanted, whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from instil.errors import DataError, ModelError, RunFolderTaken, SettingsError
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.files import unfinished_of
from instil.model.files.safetensors import SafetensorsFile
from instil.runs.facts import input_hashes
from instil.runs.folder import FACTS, RUN_FILE, RunFolder
from instil.tasks.task import Prepared

FILES = (RUN_FILE, "split.json", "metrics.jsonl", "loss.png", FACTS, "report.html", "model/config.json")
LATER: dict[str, Any] = {  # settings that earlier versions lack, with what they did
    "train.gradient_checkpointing": False,
    "train.on_divergence": "stop",
    "lora.trainable_token_indices": [],
    "train.rehearse": 0.0,
    "data.max_train_samples": 0,
    "data.sample_seed": 123,
}
SHOWN = 5  # settings named in a message
STEP = "step-"  # what names of checkpoints begin with

GROWING = ("train.epochs", "train.max_steps")  # what may grow with --extend
NO_MATTER = {  # settings that make no other run
    ("train", name) for name in ("save_every", "keep_checkpoint", "micro_batch", "gradient_checkpointing", "shard")
}

# "begun": the very run that is wanted, which can go on; "unfinished": another one, or one that lacks files.
State = Literal["finished", "begun", "unfinished", "absent"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a run the run it is, as `run.toml` has it. How answers are judged, what else is measured, how often
    it is saved, in what pieces the same sums are computed, or who else is told of it, is no part of it.
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
    folder.check_free(overwrite=True)
    if not (folder.path / RUN_FILE).is_file():
        return "absent"
    try:
        differences = wanted.differences(folder.read_settings())
    except DataError:
        return "unfinished"
    if not folder.finished:
        return "unfinished" if differences else "begun"
    if differences and not overwrite:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise RunFolderTaken(
            f"{folder.path} holds a finished run that is another one: {'; '.join(differences[:SHOWN])}{more}. "
            "Choose another --out, or add --overwrite"
        )
    if not differences and is_whole(folder):
        return "finished"
    return "unfinished" if differences or not any(folder.checkpoints.glob(f"{STEP}*")) else "begun"


def is_whole(folder: RunFolder, *, answers: bool = True) -> bool:
    """Whether all files of a finished run are there, and the weights are not cut off.

    ``answers`` is whether held-out rows were to be answered, if there are some.
    """
    try:
        settings, held_out = folder.read_settings()["settings"], folder.held_out_rows()
    except DataError:
        return False
    wanted = [folder.path / name for name in FILES]
    if held_out and answers:
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


def check_same(folder: RunFolder, wanted: Identity, *, answers: bool = True) -> None:
    """Whether a run that was begun and is not finished is the one that is to go on.

    ``answers`` is whether held-out rows are answered in it, if there are some.

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
            + ("; --extend lets it go on for longer" if all(line.startswith(GROWING) for line in differences) else "")
        )
    if folder.finished and is_whole(folder, answers=answers):
        raise RunFolderTaken(f"{folder.path} is finished, so there is nothing to go on with; see {folder.report}")


def clear_leftovers(folder: RunFolder) -> None:
    """Remove what a run leaves that was killed before its first file was written: empty folders."""
    for left in folder.leftovers() or ():
        if left.is_dir():
            left.rmdir()
        elif left == unfinished_of(folder.path / RUN_FILE):
            left.unlink()


def _shaping(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {name: value for name, value in values.items() if (section, name) not in NO_MATTER}
        for section, values in settings.items()
        if section not in ("score", "keep", "log")
    }


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
