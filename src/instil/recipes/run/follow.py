"""What the processes of a run do that are not its first: they prepare the same, and then what they are told."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGTERM

from instil.errors import InstilError, RankLost, StoppedEarly, TrainingDiverged, UserError
from instil.machine import release
from instil.model.decoder import Decoder
from instil.model.fast.gemm import use_again
from instil.recipes.run.crew import Order, echo, in_parts, shared_answers, shared_likelihoods, what_is_alike
from instil.runs.checkpoints import Checkpoints
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.identity import Identity
from instil.runs.kept import Kept, KeptAnswers
from instil.runs.observers import SamplesInStep
from instil.runs.rewinding import EarlierOnDisk
from instil.runs.saving import StopsBySignal
from instil.runs.sharded import WritesItsPart
from instil.screen import Screen
from instil.settings.options import Settings
from instil.stopping import Stop, Stopped
from instil.tasks.adapters import MergeError
from instil.tasks.prepare import first_weights, load, prepare
from instil.tasks.task import Data, Prepared
from instil.tasks.tune import tune
from instil.train.best import SharedBest
from instil.train.observer import Observer
from instil.train.ranks import Ranks, UnreadWeights
from instil.train.rewind import Skipped
from instil.train.state import TrainState


def follow(data: Data, model: str | Path, settings: Settings, ranks: Ranks) -> int:
    """What a process does that is not the first; returns the exit code that it leaves with.

    Raises:
        InstilError: something is wrong here that the first process does not know of.
        Stopped: a signal came while it trained.
    """
    try:
        return _follow(data, model, settings, ranks)
    except (StoppedEarly, TrainingDiverged, MergeError, UnreadWeights) as error:  # the first process says so
        return error.exit_code
    except RuntimeError as error:
        if not ranks.is_loss(error):
            raise
        return RankLost.exit_code


def _follow(data: Data, model: str | Path, settings: Settings, ranks: Ranks) -> int:
    if not ranks.agree(False):
        return UserError.exit_code
    try:
        prepared = prepare(data, model, settings)
    except InstilError as error:
        ranks.gather(str(error))
        ranks.agree(None)
        return error.exit_code
    ranks.gather(what_is_alike(prepared))
    decoder: Decoder | None = None
    with ExitStack() as stack, ExitStack() as asked:
        journal = Kept(None, Screen(quiet=True))
        while True:
            order = ranks.agree(Order("end"))
            if order.what == "end":
                return int(order.given[0])
            if order.what == "look":
                folder, mark, products = order.given
                use_again(products)
                host, sees = _sees(folder, mark)
                ranks.gather((host, sees))
                if sees:
                    journal = stack.enter_context(Kept.of(RunFolder(Path(folder)), Screen(quiet=True), *ranks.share))
                continue
            if order.what == "hand over":
                assert decoder is not None, "it was trained"
                ranks.hand_over(dict(decoder.named_parameters()))
                continue
            if order.what == "ask":
                decoder = None  # what was trained is saved
                decoder = asked.enter_context(in_parts(ranks, prepared, *order.given))
                continue
            if order.what == "asked":
                decoder = None
                asked.close()
                release()  # before others are read
                continue
            if order.what == "go along":
                assert decoder is not None, "it is asked"
                with ranks.in_step(decoder):
                    pass
                continue
            if order.what == "train":
                path, elsewhere, *how = order.given
                decoder = decoder or load(prepared, elsewhere=elsewhere)
                prepared = _train(ranks, prepared, decoder, journal, path, *how)
                continue
            decoder = decoder or load(prepared)
            what, about = order.given
            kept = KeptAnswers(journal, about, prepared.held_out[1])
            if order.what == "answer":
                shared_answers(ranks, prepared, decoder, what, kept)
            else:
                shared_likelihoods(ranks, prepared, decoder, what, kept)


def _sees(folder: str, mark: bytes) -> tuple[str, bool]:
    try:
        sees = (Path(folder) / RUN_FILE).read_bytes() == mark
    except OSError:
        sees = False
    return platform.node(), sees


def _train(
    ranks: Ranks,
    prepared: Prepared,
    decoder: Decoder,
    journal: Kept,
    path: str,
    micro_batch: int,
    former: Sequence[Mapping[str, str]],
    state: TrainState | None,
) -> Prepared:
    """A training that the first process watches and keeps."""
    folder = RunFolder(Path(path))
    train = prepared.settings.train.model_copy(update={"micro_batch": micro_batch})
    prepared = replace(prepared, settings=prepared.settings.model_copy(update={"train": train}))
    checkpoints, quiet = Checkpoints(folder.checkpoints, Identity.of(prepared).short(), former), Screen(quiet=True)
    if state is not None:
        state = replace(state, tensors=checkpoints.tensors(state.progress.done))
    ready = prepared.task.ready(prepared, decoder, quiet, journal=journal, ranks=ranks)
    best = SharedBest(ranks, None)
    with Stop(quiet=True, echo=echo(ranks)) as stop:
        observers: list[Observer] = [StopsBySignal(stop)]
        if ranks.sharded:
            observers += [SamplesInStep(ready, ranks), WritesItsPart(ranks)]
        since = state.progress.done if state else 0
        first = partial(first_weights, prepared, elsewhere=ranks.sharded)
        earlier = _Earlier(checkpoints, folder.skipped, quiet, first, begins=since)
        try:
            tune(ready, decoder, observers, best, state, earlier, ranks)
        except RankLost:
            raise
        except InstilError as error:
            if stop.number is not None:
                raise Stopped(stop.number or SIGTERM) from error
            raise
    return prepared


class _Earlier(EarlierOnDisk):
    """The first process writes down what is skipped."""

    def skip(self, skipped: Skipped) -> None:
        self._skipped.append(skipped)

    def _note(self) -> None:
        pass
