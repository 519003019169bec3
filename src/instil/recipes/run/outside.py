"""What the model of a run does besides what it is taught, measured before training and after it.

The first of several processes does it by itself; where the weights lie in parts, the others go along.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instil.data.templates import OWN, Template
from instil.evaluate.general.material import material, taught
from instil.evaluate.general.measure import Measured, Subject
from instil.model.decoder import Decoder
from instil.model.load import file_hash
from instil.recipes.keep.measuring import measured, own_chat
from instil.recipes.plan.clock import RunClock
from instil.recipes.run.crew import Crew
from instil.runs.folder import RunFolder
from instil.runs.general import (
    About,
    GeneralVerdict,
    measured_key,
    reusable_base,
    write_general,
    write_measured,
)
from instil.runs.kept import Kept
from instil.tasks.task import Prepared


class OutsideOfRows:
    """General texts, skills, refusals and chats before and after.

    Args:
        folder: the run's.
        prepared: what is known of it.
        clock: which times it.
        journal: where measurements are kept, so that a run that goes on makes only the rest.
        crew: the processes that work on it.
    """

    def __init__(self, folder: RunFolder, prepared: Prepared, clock: RunClock, journal: Kept, crew: Crew) -> None:
        self._folder, self._prepared, self._crew = folder, prepared, crew
        self._clock, self._journal, self._screen = clock, journal, clock.screen
        self._left_out = taught(material().skills, prepared.split.train)
        self._chat, note = own_chat(prepared.model_path, prepared.tokenizer, prepared.spec.vocab_size)
        self._notes = [note] if note else []
        self._measured: dict[str, str] = {}
        self._forms: dict[str, str] = {"chat": self._chat.name if self._chat else ""}

    def before(self, decoder: Decoder, model: str, form: str, runs: Sequence[Path]) -> None:
        """Measure the base, or take it over from one of these runs.

        Args:
            decoder: the model.
            model: the hash of the base's weights.
            form: the name of the form in which it is asked, which is the run's unless it is the model's own.
            runs: finished ones, of which one may have measured the same.
        """
        own = self._prepared.own_template
        template = own if form == OWN and own is not None else self._prepared.template
        key = self._key(decoder, "base", f"{model} {self._prepared.new_rows}", template)
        found = reusable_base(key, runs)
        if found is None:
            found = self._measure(decoder, "base", key, template)
        write_measured(self._folder, "base", found)

    def after(self, decoder: Decoder) -> GeneralVerdict:
        """Measure the tuned model, whose weights are saved, and write down what has changed."""
        template = self._prepared.template
        key = self._key(decoder, "tuned", file_hash(self._folder.model), template)
        write_measured(self._folder, "tuned", self._measure(decoder, "tuned", key, template))
        verdict = write_general(self._folder, self._measured, About(self._forms, self._left_out, self._notes))
        for sentence in verdict.sentences:
            self._screen.say(f"  {sentence}")
        return verdict

    def _key(self, decoder: Decoder, side: str, weights: str, template: Template) -> str:
        self._forms[side] = template.name
        device = decoder.device.type
        chat = self._chat.hash if self._chat else ""
        self._measured[side] = measured_key(weights, template.hash, chat, device, self._left_out)
        return self._measured[side]

    def _measure(self, decoder: Decoder, side: str, key: str, template: Template) -> list[Measured]:
        subject = Subject(decoder, self._prepared.tokenizer, template, self._chat)
        when = {"base": "before", "tuned": "after"}[side]
        self._screen.say(f"  {when}: general texts, small skills, refusals{' and chats' if self._chat else ''}")
        with self._clock.stage(f"measure {when}"), self._crew.by_itself(decoder):
            return measured(subject, self._left_out, self._screen, journal=self._journal, about=key)
