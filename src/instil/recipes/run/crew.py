"""The processes that work on one run: the first goes through it as ever, and has the others do their share.

The first reads, decides, writes and shows. The others prepare the same rows, load the same model, and then wait to be
told what comes next: rows to answer, how likely references are, a training. So nothing that only one of them knows (a
signal, a folder, a clock) can lead them apart.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import __version__ as torch_version

from instil.data.templates import Template
from instil.errors import InstilError, RankLost, SettingsError, UserError
from instil.evaluate.likelihood import likelihoods, looked_at_together
from instil.generate.answer import answer
from instil.machine import device_for, release
from instil.model.decoder import Decoder
from instil.model.elsewhere import load_elsewhere
from instil.model.fast.gemm import backend
from instil.model.lora_layer import LoraLinear
from instil.records import Completion, Encoded, Example, Verdict
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.identity import Identity
from instil.runs.kept import KeptAnswers
from instil.settings.options import Settings
from instil.stopping import Stopped
from instil.tasks.adapters import merged_later
from instil.tasks.prepare import load
from instil.tasks.task import Prepared
from instil.train.parallel.launch import NUMBER
from instil.train.ranks import ALONE, Ranks
from instil.train.state import TrainState
from instil.version import __version__

Value = TypeVar("Value")
ECHO = 5.0  # seconds within which torchrun passes on a signal that others have sent to each process as well
NOBODY = Completion(text="", ids=(), finish="no_room", prompt_tokens=0, row=-1)  # in the place of another's answer
UNSEEN = Verdict(-1, "", None, "")


@dataclass(frozen=True, slots=True)
class Order:
    """What the others are to do."""

    what: str
    given: tuple[Any, ...] = ()


class Crew:
    """This process, the first, and those that it directs; in a ``with`` block, after which they leave.

    Args:
        ranks: the processes; one alone directs nobody.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self._waiting = False  # whether the others wait to be told

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What goes wrong inside is the others' end, too.

        Raises:
            RankLost: another process is gone.
        """
        code = 1
        try:
            yield
            code = 0
        except InstilError as error:
            code = error.exit_code
            raise
        except Stopped as stopped:
            code = 128 + stopped.number
            raise
        except RuntimeError as error:
            if not self.ranks.is_loss(error):
                raise
            self._waiting = False
            raise RankLost(
                "another process of this run is gone; what was made is kept, and --resume goes on"
            ) from error
        finally:
            if self._waiting and not self.ranks.alone:
                self._waiting = False
                self._say_last(Order("end", (code,)))

    def _say_last(self, what: object) -> None:
        """Tell the others what is no order to work; they may be gone, and why it is said comes first."""
        try:
            self.ranks.agree(what)
        except RuntimeError as error:
            if not self.ranks.is_loss(error):
                raise

    def start(self, make: Callable[[], Prepared]) -> Prepared:
        """Prepare the run here, then everywhere, and make sure that it is the same one.

        Raises:
            UserError: some process has other rows, another model or other versions, or cannot prepare it.
        """
        if self.ranks.alone:
            return make()
        try:
            prepared = make()
        except BaseException:
            self._say_last(False)
            raise
        self.ranks.agree(True)
        self._waiting = True
        own, *others = self.ranks.gather(what_is_alike(prepared))
        _check_alike(own, others)
        _check_settings(prepared.settings, self.ranks)
        return prepared

    def check_shared(self, folder: RunFolder) -> None:
        """Make sure that every process sees the run's folder as this one has written it, and rounds as it does.

        Raises:
            UserError: one does not.
        """
        if self.ranks.alone:
            return
        mark = (folder.path / RUN_FILE).read_bytes()
        with self._told("look", str(folder.path), mark, backend()):
            looks = self.ranks.gather(("", True))
        for rank, (host, sees) in enumerate(looks):
            if not sees:
                raise UserError(
                    f"process {rank} on {host} does not see {folder.path} as process 0 does; all processes of a run "
                    "need one folder that they share, such as a network drive"
                )

    def answer(
        self,
        prepared: Prepared,
        decoder: Decoder,
        template: Template,
        kept: KeptAnswers,
        begin: Callable[[int], None],
        advance: Callable[..., None],
    ) -> list[Completion]:
        """The answers to the held-out rows (`instil.generate.answer.answer`), each process making some of them.

        What is ``kept`` of them is taken from it (``begin`` is told how many all processes have together), and it is
        given the others as they are made.
        """
        with self._told("answer", template, kept.about):
            return shared_answers(
                self.ranks, prepared, decoder, template, kept, begin, lambda: advance(steps=self.ranks.world)
            )

    def likelihoods(
        self, prepared: Prepared, decoder: Decoder, rows: Sequence[Encoded], kept: KeptAnswers
    ) -> list[Verdict]:
        """How likely the references are (`instil.evaluate.likelihood`), each process looking at some of them."""
        with self._told("likelihoods", tuple(rows), kept.about):
            return shared_likelihoods(self.ranks, prepared, decoder, rows, kept)

    def ask(
        self, prepared: Prepared, decoder: Decoder, work: Callable[[Decoder], None], tuned: Path | None = None
    ) -> None:
        """Work with the model that is asked: the decoder, or where its weights are elsewhere one that lies in parts.

        Args:
            prepared: whose model it is.
            decoder: holds all of its weights, or none.
            work: is given what answers, and keeps nothing of it.
            tuned: where the model was saved after training; before it None.

        Raises:
            UnreadWeights: some process cannot read its part.
        """
        if decoder.elsewhere is None:
            work(decoder)
            return
        self._ask_in_parts(prepared, work, tuned)
        release()  # before others are read

    def _ask_in_parts(self, prepared: Prepared, work: Callable[[Decoder], None], tuned: Path | None) -> None:
        with ExitStack() as stack:
            with self._told("ask", tuned):
                asked = stack.enter_context(in_parts(self.ranks, prepared, tuned))
            work(asked)
            self.ranks.agree(Order("asked"))

    @contextmanager
    def by_itself(self, decoder: Decoder) -> Iterator[None]:
        """Inside, the first process alone asks; of a decoder in parts the others compute theirs."""
        if not decoder.in_parts:
            yield
            return
        with self._told("go along"), self.ranks.in_step(decoder):
            yield

    @contextmanager
    def training(
        self,
        prepared: Prepared,
        decoder: Decoder,
        folder: RunFolder,
        former: Sequence[Mapping[str, str]],
        state: TrainState | None,
    ) -> Iterator[None]:
        """Inside, all are ready for `instil.tasks.task.Task.ready` and for `tune`, in this order.

        ``former`` and ``state``: whose checkpoints it may go back to, and from which it begins (`Checkpoints`).
        """
        without = None if state is None else replace(state, tensors={}, best={})
        how = decoder.elsewhere is not None, prepared.settings.train.micro_batch, tuple(former), without
        with self._told("train", str(folder.path), *how):
            yield

    @contextmanager
    def saving(self, decoder: Decoder) -> Iterator[Decoder]:
        """Inside, what is saved of a decoder that was trained; of one in parts tensors are gathered one by one."""
        if decoder.elsewhere is None:
            yield decoder
        elif any(isinstance(module, LoraLinear) for module in decoder.modules()):
            yield merged_later(decoder)
        else:
            self.ranks.agree(Order("hand over"))
            self._waiting = False
            try:
                yield self.ranks.collected(decoder)
            finally:
                self._say_last("")
                self._waiting = True

    @contextmanager
    def _told(self, what: str, *given: Any) -> Iterator[None]:
        """While they do something, the others cannot be told anything else."""
        if not self.ranks.alone:
            self.ranks.agree(Order(what, given))
        self._waiting = False
        yield
        self._waiting = True


def echo(ranks: Ranks) -> float:
    """Seconds in which a second signal is taken for the first; `launch` passes on each once."""
    return 0.0 if ranks.alone or NUMBER in os.environ else ECHO


def _check_alike(own: dict[str, str] | str, others: Sequence[dict[str, str] | str]) -> None:
    """Make sure that all processes prepare the same run.

    Raises:
        UserError: one does not.
    """
    assert isinstance(own, dict)
    for rank, other in enumerate(others, 1):
        if isinstance(other, str):
            raise UserError(f"process {rank} cannot prepare this run: {other}")
        for name in other:
            if name != "host" and other[name] != own.get(name):
                raise UserError(
                    f"process {rank} on {other['host']} has another {name} than process 0: {other[name]} instead of "
                    f"{own.get(name)}; all need the same rows, settings, model and versions"
                )


def _check_settings(settings: Settings, ranks: Ranks) -> None:
    """Make sure that several processes can do what is asked for.

    Raises:
        SettingsError: they cannot.
    """
    train = settings.train
    if not train.batch_tokens and train.batch_size < ranks.world:
        raise SettingsError(
            f"{ranks.world} processes share the rows of a step, and train.batch_size={train.batch_size} gives some of "
            f"them none; set train.batch_size={ranks.world} or more, or start fewer processes"
        )


def what_is_alike(prepared: Prepared) -> dict[str, str] | str:
    """What has to be the same everywhere."""
    versions = {"version of instil": __version__, "version of torch": torch_version}
    return {"host": platform.node(), **versions, **Identity.of(prepared).short()}


@contextmanager
def in_parts(ranks: Ranks, prepared: Prepared, tuned: Path | None) -> Iterator[Decoder]:
    """Inside, the model before training, or the ``tuned`` one as it was saved, of which each process has a part.

    Raises:
        UnreadWeights: some process cannot read its part.
    """
    release()  # what was trained, which is saved
    device = device_for(prepared.settings.train.device)
    decoder = load(prepared, elsewhere=True) if tuned is None else load_elsewhere(tuned, device=device)
    with ranks.sharding(decoder) as parts:
        yield parts.eval()


def shared_answers(
    ranks: Ranks,
    prepared: Prepared,
    decoder: Decoder,
    template: Template,
    kept: KeptAnswers,
    begin: Callable[[int], None] = lambda known: None,
    advance: Callable[[], None] = lambda: None,
) -> list[Completion]:
    examples: Sequence[Example] = prepared.held_out[1]
    known = _united(ranks.gather(kept.answers()))
    begin(len(known))
    asked = [index for index in range(len(examples)) if index not in known]
    own = asked[ranks.rank :: ranks.world]
    others = {**dict.fromkeys(set(asked).difference(own), NOBODY), **known}
    with ranks.in_step(decoder):
        made = answer(
            decoder, prepared.tokenizer, template, examples, prepared.settings.generate, advance,
            known=others, on_answer=kept.keep_answer,
        )  # fmt: skip
    found = _united(ranks.gather({index: made[index] for index in own}))
    return [found[index] if index in found else known[index] for index in range(len(examples))]


def shared_likelihoods(
    ranks: Ranks, prepared: Prepared, decoder: Decoder, rows: Sequence[Encoded], kept: KeptAnswers
) -> list[Verdict]:
    groups = looked_at_together(rows, prepared.max_length)
    own = {index for group in groups[ranks.rank :: ranks.world] for index in group}
    known = _united(ranks.gather(kept.likelihoods()))
    others = {**{index: UNSEEN for index in range(len(rows)) if index not in own}, **known}
    with ranks.in_step(decoder):
        made = likelihoods(decoder, rows, prepared.max_length, known=others, on_verdict=kept.keep_likelihood)
    found = _united(ranks.gather({index: made[index] for index in own}))
    return [found[index] for index in range(len(rows))]


def _united(parts: Sequence[Mapping[int, Value]]) -> dict[int, Value]:
    """What each process has, together."""
    return {index: value for part in parts for index, value in part.items()}
