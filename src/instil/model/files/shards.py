"""Which files of a folder of `transformers` hold its weights: one, or several shards that an index lists.

Where both are there `transformers` reads the single file, and so does this; a folder that was saved again over larger
shards still holds these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from instil.errors import ModelError, counted
from instil.files import is_file, json_object_or_empty, json_text, read_json_object, write_whole
from instil.model.files.safetensors import Later, SafetensorsFile, described, same, write_safetensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NO_JSON = "cannot be read as JSON"
LARGEST = 5 * 10**9  # bytes of a file that is written
_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files to read, where an index says that each tensor is (empty: there is none), and what is to be said."""

    names: tuple[str, ...]
    listed: Mapping[str, str]
    notes: tuple[str, ...] = ()


def weight_files(folder: Path) -> WeightFiles:
    """The files that hold a folder's weights.

    Raises:
        ModelError: there are none of a form that is read here, some are missing, or the index is damaged.
    """
    if (folder / WEIGHTS).is_file():
        return WeightFiles((WEIGHTS,), {}, _left_aside(folder))
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS} in it{_instead(folder)}")
    listed = _weight_map(folder / INDEX)
    names = tuple(sorted(set(listed.values())))
    missing = [name for name in names if Path(name).name != name or not is_file(folder / name)]
    if missing:
        raise ModelError(
            f"{folder}: {INDEX} names {counted(len(names), 'file')}, of which {_some(map(repr, missing))} "
            f"{'is' if len(missing) == 1 else 'are'} not in the folder; fetch or copy the missing ones"
        )
    return WeightFiles(names, listed)


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor | Later]], largest: int = LARGEST) -> None:
    """Write weights as ``model.safetensors``, or where they are larger as shards with an index, as transformers does.

    A tensor lies in one shard as a whole, so that one larger than ``largest`` bytes makes a shard of its own.

    Raises:
        OSError: they cannot be written.
    """
    shards: list[list[tuple[str, Tensor | Later]]] = [[]]
    filled = total = 0
    for name, tensor in tensors:
        size = described(tensor).nbytes
        if shards[-1] and filled + size > largest:
            shards.append([])
            filled = 0
        shards[-1].append((name, tensor))
        filled, total = filled + size, total + size
    if len(shards) == 1:
        _write(folder / WEIGHTS, shards[0])
        return
    listed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard)
        listed |= dict.fromkeys((name for name, _ in shard), file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(listed.items()))}
    (folder / INDEX).write_text(json_text(index), encoding="utf-8")


def _write(path: Path, tensors: Iterable[tuple[str, Tensor | Later]]) -> None:
    """In one piece, since a model's weights may lie in the very file that is written anew."""
    try:
        write_whole(path, lambda part: write_safetensors(part, tensors))
    except OSError as error:
        error.filename = str(path)
        raise


def open_shards(folder: Path, files: WeightFiles) -> tuple[dict[str, SafetensorsFile], tuple[str, ...]]:
    """For each tensor the opened file that it is in, and what is to be said of an index that is not exact.

    Raises:
        ModelError: a file is damaged, two hold different tensors of one name, or the index names one that none holds.
    """
    where: dict[str, SafetensorsFile] = {}
    for name in files.names:
        file = SafetensorsFile(folder / name)
        for tensor in sorted(file.names()):
            if tensor in where and not same(where[tensor], tensor, file, tensor):
                raise ModelError(
                    f"{folder}: {tensor} is in {where[tensor].path.name} and in {name}, with other values; shards of "
                    "two models are mixed here. Fetch the model anew into an empty folder"
                )
            where[tensor] = file
    if not files.listed:
        return where, ()
    if nowhere := sorted(files.listed.keys() - where.keys()):
        raise ModelError(
            f"{folder}: {INDEX} says that {nowhere[0]} is in {files.listed[nowhere[0]]}, which does not hold it"
            f"{_and_more(len(nowhere) - 1)}; file and index do not belong together, fetch them again"
        )
    wrong = [tensor for tensor, file in where.items() if files.listed.get(tensor) != file.path.name]
    wrong = [tensor for tensor in wrong if not _listed_is_right(folder, files.listed.get(tensor), tensor)]
    if not wrong:
        return where, ()
    return where, (
        f"{folder / INDEX} does not say where {_some(wrong)} {'is' if len(wrong) == 1 else 'are'}; read from the "
        "shard that holds it, as transformers does",
    )


def _listed_is_right(folder: Path, name: str | None, tensor: str) -> bool:
    """Whether the index is right although another shard holds the tensor, too."""
    return name is not None and tensor in SafetensorsFile(folder / name).names()


def _left_aside(folder: Path) -> tuple[str, ...]:
    """That there are shards or an index of others, too, which are not read."""
    listed = json_object_or_empty(folder / INDEX).get("weight_map")
    named = {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
    shards = {entry.name for entry in folder.glob("model-*-of-*.safetensors")}
    shards |= {name for name in named if Path(name).name == name and is_file(folder / name)}
    if not (shards | named) - {WEIGHTS}:
        return ()
    there = f"{counted(len(shards - {WEIGHTS}), 'shard')} of a model" if shards - {WEIGHTS} else f"an index ({INDEX})"
    return (
        f"{folder} holds {WEIGHTS} and {there} as well; {WEIGHTS} is read, as transformers does. Remove what is not "
        "wanted",
    )


def _weight_map(path: Path) -> dict[str, str]:
    listed = read_json_object(path, error=ModelError, problem=NO_JSON).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"{path}: damaged, it has no weight_map that names a file for each tensor")
    if not listed:
        raise ModelError(f"{path}: its weight_map is empty")
    return listed


def _instead(folder: Path) -> str:
    """What is in a folder without weights that are read, and what would help."""
    found = sorted(entry.name for entry in folder.iterdir())
    safe = [name for name in found if name.endswith(".safetensors")]
    pickled = [name for name in found if name.endswith((".bin", ".bin.index.json")) and name.startswith("pytorch_")]
    if any("-of-" in name for name in safe):
        return f", and no {INDEX} for the shards {_some(safe)}; fetch or copy it, too"
    if safe:
        return f", but {_some(safe)}, which transformers reads only when told its variant; rename it to {WEIGHTS}"
    if pickled:
        return (
            f", but {_some(pickled)}, a pickle, which can run code and is not read here; save it anew as safetensors: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    return f"; found {', '.join(found[:10]) or 'nothing'}"


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + _and_more(len(listed) - _SHOWN)


def _and_more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""
