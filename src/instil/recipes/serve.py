"""Models served over HTTP, each run beside the model that it was tuned from."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.errors import ModelError, UserError
from instil.files import plain_name
from instil.model.find import find_model
from instil.runs.folder import RUN_FILE, RunFolder
from instil.screen import Screen
from instil.serve.access import access_to, read_key
from instil.serve.app import make_app
from instil.serve.guard import Guard
from instil.serve.limits import Limits
from instil.serve.models import Models, Served
from instil.serve.pages import OPEN, page_routes
from instil.serve.server import addresses, listen, run
from instil.serve.worker import UNDER_WAY, Worker

BASE = ":base"


@dataclass(frozen=True)
class Serving:
    """How models are served.

    Attributes:
        host: an address or a name of this machine.
        port: 0 takes a free one.
        base: serve the model that a run was tuned from as well, as ``NAME:base``.
        int8: hold weights in eight bits.
        bf16: hold them in bfloat16.
        template: for models that carry none.
        under_way: requests at once, at most; more are told to come back.
        rows: answers that one model makes side by side, at most.
        folder: where rows that are made of answers are written.
        root: the folder whose runs are shown; None shows none.
        key_file: holds the key that clients give; ``INSTIL_API_KEY`` does so, too.
        host_names: further names by which the server is reached.
        origins: pages of other servers that may ask.
        generate: settings of generation, in place of each run's own.
        debug: show tracebacks of what fails.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    base: bool = True
    int8: bool = False
    bf16: bool = False
    template: str | None = None
    under_way: int = UNDER_WAY
    rows: int = 32
    folder: Path = Path()
    root: Path | None = None
    key_file: Path | None = None
    host_names: Sequence[str] = ()
    origins: Sequence[str] = ()
    generate: Mapping[str, Any] = field(default_factory=dict)
    debug: bool = False


def serve(
    models: Sequence[str], serving: Serving, environment: Mapping[str, str], screen: Screen | None = None
) -> None:
    """Serve some models until a signal comes.

    Args:
        models: run folders, or any models; ``NAME=PATH`` gives one another name than its folder's.
        serving: how.
        environment: may hold the key.
        screen: where it is said what happens; nowhere by default.

    Raises:
        UserError: a model is not there, two have one name, the port is taken, or others reach the server and there is
            no key. Nothing was loaded where that could be told before.
    """
    shown = screen or Screen(quiet=True)
    named = names_of(models)
    limits = Limits()
    key = read_key(environment, serving.key_file)
    sockets = listen(serving.host, serving.port)
    try:
        access = access_to(addresses(sockets), key=key, host_names=serving.host_names, origins=serving.origins)
        served = Models(loaded(named, serving, shown))
    except BaseException:
        for one in sockets:
            one.close()
        raise
    worker = Worker(served, under_way=serving.under_way, rows=serving.rows)
    stopping = threading.Event()
    app = make_app(worker, page_routes(served, serving.folder, serving.root, stopping=stopping.is_set))
    guard = Guard(app, access, limits=limits, open_paths=("/health", *OPEN), screen=shown, debug=serving.debug)
    run(
        guard,
        sockets,
        list(served),
        limits=limits,
        screen=shown,
        when_stopping=stopping.set,
        debug=serving.debug,
    )


def names_of(models: Sequence[str]) -> dict[str, str]:
    """What each model is called, and where it is.

    >>> names_of(["runs/demo", "mine=runs/other"])
    {'demo': 'runs/demo', 'mine': 'runs/other'}

    Raises:
        UserError: two have one name, or a name cannot be one.
    """
    found: dict[str, str] = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = plain_name(Path(given).resolve() if Path(given).exists() else Path(given)), given
        if not name or len(name) > 200 or any(not letter.isprintable() or letter.isspace() for letter in name):
            raise UserError(f"{given}: {name!r} cannot be a model's name; give one with NAME={path}")
        if name.endswith(BASE):
            raise UserError(f"{given}: names that end in {BASE} are those of the models that runs were tuned from")
        if name in found:
            raise UserError(f"{found[name]} and {path} are both called {name}; give one another name: NAME={path}")
        found[name] = path
    return found


def loaded(named: Mapping[str, str], serving: Serving, screen: Screen) -> list[Served]:
    """The models, and those that runs among them were tuned from, each loaded once."""
    found: list[Served] = []
    bases: dict[str, Assistant] = {}
    for name, path in named.items():
        screen.say(f"loading {path}")
        assistant = load(path, template=serving.template, int8=serving.int8, bf16=serving.bf16, **serving.generate)
        for note in assistant.decoder.notes:
            screen.say(note, "yellow")
        run_folder = Path(path) if (Path(path) / RUN_FILE).is_file() else None
        found.append(Served(name, assistant, _written(path, run_folder), run_folder))
        if run_folder is None or not serving.base:
            continue
        base = RunFolder(run_folder).base()
        try:
            if base not in bases:
                screen.say(f"loading {base}, which {name} was tuned from")
                bases[base] = load(base, int8=serving.int8, bf16=serving.bf16, **serving.generate)
            found.append(Served(f"{name}{BASE}", bases[base], _written(base, None), base_of=name))
        except ModelError as error:
            screen.say(f"{name}{BASE} is not served: {error}", "yellow")
    return found


def _written(path: str, run_folder: Path | None) -> int:
    """When a model was written, in seconds since 1970."""
    place = find_model(path) if run_folder is None else RunFolder(run_folder).model
    return int(place.stat().st_mtime)
