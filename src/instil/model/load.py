"""A decoder with real weights, from a name, a folder or a file: which reader opens it (`instil.model.files`)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.files.folder import SafetensorsFolder, spec_of_config
from instil.model.files.reader import Reader, check_layers, fill
from instil.model.find import find_config, find_model
from instil.model.spec import DecoderSpec


def load_decoder(
    model: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    mapped: bool = False,
) -> Decoder:
    """Load a decoder by name, from a folder of `transformers` or of OpenAI's, or from a GGUF file.

    Quantised weights are dequantised. Every tensor of the file must be used and every parameter found;
    anything else is refused rather than guessed.

    Args:
        model: its name, folder or file.
        dtype: in which the weights are held. For answering any will do; `instil.train` wants float32 of what it trains.
        device: where.
        mapped: leave weights in their file where it has them as they are wanted; they are read when they are used, by
            all processes together, and the file may be replaced meanwhile, but not written to.

    Raises:
        ModelError: there is no such model, it is damaged, or of a kind that is not read here.
    """
    reader = open_model(find_model(model))
    check_layers(reader)
    decoder = blank_decoder(reader.spec)
    fill(decoder, reader, dtype, torch.device(device), mapped=mapped)
    decoder.notes = reader.notes
    return decoder.eval()


def blank_decoder(spec: DecoderSpec, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder whose parameters have shapes and no memory (torch's ``meta`` device)."""
    with torch.device("meta"), _NoValues():
        return Decoder(spec).to(dtype)


class _NoValues(TorchFunctionMode):
    """Leaves out the drawing of first values: on the meta device it does nothing but import 75 MB of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def open_model(path: Path) -> Reader:
    """The right reader for a folder or file."""
    if path.is_dir():
        openai = any((path / name).is_file() for name in ("hparams.json", "model.ckpt.index"))
        if openai and not (path / "config.json").is_file():
            from instil.model.files.tensorflow import TensorflowCheckpoint

            return TensorflowCheckpoint(path)
        return SafetensorsFolder(path)
    if path.suffix == ".pth":
        from instil.model.files.pth import PthFile

        return PthFile(path)
    from instil.model.files.gguf import GgufFile

    return GgufFile(path)


def read_spec(model: str | Path) -> DecoderSpec:
    """The shape of a model, of which no weight is read; of one on the hub only the configuration is fetched.

    A folder with nothing but its ``config.json`` will do. Of one whose weights are there, too, they have the last word
    on whether the head is the embedding.

    Raises:
        ModelError: there is no such model, or it is damaged, or of a kind that is not read here.
    """
    path = find_config(model)
    if not path.is_dir():
        return open_model(path).spec
    if (path / "hparams.json").is_file() and not (path / "config.json").is_file():
        from instil.model.files.tensorflow import spec_of_sizes

        return spec_of_sizes(path)
    try:
        return open_model(path).spec
    except ModelError:  # weights that are missing, or of a form that is not read
        return spec_of_config(path)


def is_quantised(model: str | Path) -> bool:
    """Whether any of a model's weights are stored in few bits (a GGUF file may hold floats, too).

    Raises:
        ModelError: see `load_decoder`.
    """
    from instil.model.files.gguf import GgufFile

    reader = open_model(find_model(model))
    return isinstance(reader, GgufFile) and reader.quantised


def stored_as(path: Path) -> str:
    """In which numbers most of a model's weights are stored: ``f32``, ``bf16``, ``f16``, or others such as ``q4_1``.

    Raises:
        ModelError: see `load_decoder`.
    """
    from instil.model.files.gguf import GgufFile

    reader = open_model(path)
    kinds = reader.kinds() if isinstance(reader, GgufFile | SafetensorsFolder) else {"f32": 1}
    return max(kinds, key=lambda kind: kinds[kind], default="f32")


def file_hash(model: str | Path) -> str:
    """SHA-256 of the files that a model's weights are read from, one after the other, whatever form they have.

    Raises:
        ModelError: see `load_decoder`.
    """
    digest = hashlib.sha256()
    for file in open_model(find_model(model)).files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
