"""State dictionaries in ``.pth`` files, as the chapter saves and loads them (7.8, listing after 7.9).

A GPT-2 is written under the names of the book's ``GPTModel``, so that the book's own code loads it; other
families under the names of transformers. Files are read with ``weights_only`` always: a pickle that wants
to run code is refused and runs nothing.
"""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.files import write_whole
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.family import Family, Stored
from instil.model.files.names import plain_names, wrapper
from instil.model.files.reader import fill, hub_tensors, stored_tensors
from instil.model.spec import DecoderSpec

SAFE_TORCH = (2, 10)  # earlier versions have holes in weights_only (CVE-2025-32434, CVE-2026-24747)
# The families that have a form without a configuration, and that form.
FORMS = [(family, family.state_dict) for family in FAMILIES.values() if family.state_dict is not None]


class PthFile:
    """An opened ``.pth`` file.

    A state dictionary carries no configuration, so the spec is either given, or read off the shapes, which
    works for the book's GPT-2 alone.
    """

    path: Path
    family: Family
    spec: DecoderSpec
    table: Mapping[str, Stored]
    notes: tuple[str, ...] = ()
    training_notes: tuple[str, ...] = ()

    def __init__(self, path: Path, spec: DecoderSpec | None = None) -> None:
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        state = read_state(path, mmap=True)  # for names and shapes; no weight is read
        before = wrapper(state)
        shapes = {name.removeprefix(before): tuple(tensor.shape) for name, tensor in state.items()}
        form = next((form for _, form in FORMS if form.mark in shapes), None)
        if spec is None:
            if form is None:
                raise ModelError(
                    f"{path}: a .pth file carries no configuration, and its names are not those of the book's GPT-2 "
                    f"(found {', '.join(sorted(state)[:3]) or 'nothing'}); use a model folder instead"
                )
            try:
                spec = form.spec(shapes)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
        self.spec = spec
        self.family = FAMILIES[spec.family]
        self.table = self.family.hub if form is None else form.names
        derived = tuple(form.derived for _, form in FORMS)
        names = [name for name in state if not name.endswith(derived)]
        if form is None:
            self._where, problem = plain_names(names, self.table, self.family.prefix)
            if problem:
                raise ModelError(f"{path}: {problem}")
        else:
            self._where = {name.removeprefix(before): name for name in names}
        self._unread: dict[str, Tensor] | None = None
        self._taken: set[int] = set()

    def names(self) -> set[str]:
        return set(self._where)

    def get(self, name: str) -> Tensor:
        """A tensor, which is not kept here: so no second copy of the file is ever in memory."""
        if self._unread is None:
            state = read_state(self.path)
            self._unread = {ours: state[theirs] for ours, theirs in self._where.items()}
        tensor = self._unread.pop(name)
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in self._taken or storage.nbytes() != tensor.nbytes
        self._taken.add(storage.data_ptr())
        return tensor.clone() if shared else tensor  # tensors that share memory would be trained as one


def reads_back(spec: DecoderSpec) -> bool:
    """Whether a ``.pth`` file of such a model can be loaded without being told its spec."""
    return any(form.reads_back(spec) for _, form in FORMS)


def has_form(spec: DecoderSpec) -> bool:
    """Whether models of this family can have such a file at all."""
    return any(family.name == spec.family for family, _ in FORMS)


def read_state(path: Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file; with ``mmap`` their bytes are read when they are looked at.

    Raises:
        ModelError: it is empty, cut off, something else altogether, or would run code.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_TORCH:
        raise ModelError(f"{path}: .pth files are read with torch 2.10 or newer only; this is {torch.__version__}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: the file is empty")
    try:
        whole = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of an archive in several parts
        whole = False
    if not whole:
        with path.open("rb") as file:
            start = file.read(16)
        raise ModelError(f"{path}: not a file of torch.save, or cut off (it starts with {start!r}). Fetch it again.")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path}: refused, it holds more than tensors; nothing in it was run") from error
    except Exception as error:  # a damaged archive raises whatever the reader raises
        raise ModelError(f"{path}: damaged or cut off. Fetch it again.") from error
    if isinstance(state, Mapping) and isinstance(state.get("model_state_dict"), Mapping):
        state = state["model_state_dict"]  # the chapter's way to save model and optimizer together (5.4)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: wanted a dictionary of tensors, as model.state_dict() gives")
    return dict(state)


def save_pth(decoder: Decoder, path: Path, add: Callable[[Path], None] = lambda part: None) -> None:
    """Write the weights; a GPT-2 in the form that the book's ``GPTModel.load_state_dict`` takes.

    The book's head is always a parameter of its own, and its causal masks are buffers; both are written
    without using space twice.

    Args:
        decoder: whose they are.
        path: where to.
        add: puts more into the archive before it takes its name.

    Raises:
        OSError: it cannot be written.
    """
    state: dict[str, Tensor]
    form = FAMILIES[decoder.spec.family].state_dict
    if form is None:
        state = {name: tensor.contiguous() for name, tensor in hub_tensors(decoder)}
    else:
        state = {name: tensor.contiguous() for name, tensor in stored_tensors(decoder, form.names)}
        state.setdefault(form.head, state[form.mark])
        state |= form.buffers(decoder.spec)
    here = {id(tensor): tensor.cpu() for tensor in state.values()}  # a shared table stays one

    def write(part: Path) -> None:
        try:
            torch.save({name: here[id(tensor)] for name, tensor in state.items()}, part)
        except RuntimeError as error:  # so torch calls it, whatever the system had said
            raise OSError(errno.EIO, "torch could not write all of it; is the disk full?", str(part)) from error
        add(part)

    write_whole(path, write)


def load_pth(decoder: Decoder, path: Path) -> None:
    """Give a decoder the weights of a ``.pth`` file, in place.

    Raises:
        ModelError: the file cannot be read or does not fit.
    """
    weight = decoder.embed.weight
    fill(decoder, PthFile(path, decoder.spec), weight.dtype, weight.device)
