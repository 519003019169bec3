"""The held-out rows of a run: answered and scored before and after training.

A model that carries a chat template of its own is asked in it as well before training: what it can do shows only when
it is asked as it was taught. The better of both forms counts as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from instil.ask.journal import key_of
from instil.data.encoding import encode_many
from instil.data.templates import OWN, Template
from instil.errors import counted
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.likelihood import VERSION as LIKELIHOOD_VERSION
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import means, score_offline, trivial_baseline
from instil.generate.answer import unended
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.recipes.run.crew import Crew
from instil.records import Completion, Verdict
from instil.runs.answers import AnsweredRows, other_form, read_verdicts, write_verdicts
from instil.runs.baseline import copy_base_answers, reusable_run
from instil.runs.facts import Before
from instil.runs.folder import RunFolder
from instil.runs.kept import Kept, KeptAnswers, weights_hash
from instil.settings.asking import ScoreOptions
from instil.tasks.form import asked_before
from instil.tasks.task import Prepared
from instil.version import __version__


class HeldOutAnswers:
    """The held-out rows, answered and scored before and after training."""

    def __init__(self, folder: RunFolder, prepared: Prepared, clock: RunClock, journal: Kept, crew: Crew) -> None:
        self._folder, self._prepared, self._journal = folder, prepared, journal
        self._crew = crew
        self._asked = ""  # the hash of what shapes the answers, but for form and row
        self._screen, self._clock = clock.screen, clock
        self.part, self.examples = prepared.held_out
        self.answers: dict[str, list[Completion]] = {}
        self.verdicts: dict[str, list[Verdict]] = {}
        self.reused: Path | None = None
        self.form: Before | None = None  # which form counts as before, where there were two
        self._made = 0  # answers of the last stage that were made now

    def before(self, decoder: Decoder, forecast: Forecast, asked: str, runs: Sequence[Path]) -> None:
        """Answer as the base model does, or take the answers over from one of these runs that was asked the same."""
        self._asked = asked
        self.reused = reusable_run(asked, runs)
        if self.reused is not None:
            self._screen.head("Before")
            self._screen.say(f"  answered the same already; taken over from {self.reused}")
            self.answers, self.form = copy_base_answers(self.reused, self._folder)
            for which in self.answers:
                self.verdicts[which] = read_verdicts(self._folder.path / "scores" / f"{which}.offline.jsonl")
                self._say_score(which)
        else:
            self._answer_before(decoder, forecast)
        self.verdicts["echo"] = trivial_baseline(self.examples)

    def after(self, decoder: Decoder) -> None:
        """Answer as the tuned model does."""
        template = self._prepared.template
        options = self._prepared.settings.generate.model_dump(mode="json")
        self._asked = key_of(__version__, LIKELIHOOD_VERSION, weights_hash(decoder), options, self._prepared.max_length)
        self.answers["tuned"] = self._answer(decoder, "answer after", template)
        self._score("tuned")
        self._add_likelihood(decoder, "tuned", template, "likelihood after")

    def _answer_before(self, decoder: Decoder, forecast: Forecast) -> None:
        """Answer in the run's form, and in the model's own where that is another; keep what scores better as before."""
        template = self._prepared.template
        self.answers["base"] = self._answer(decoder, "answer before", template)
        self._foresee(forecast, "base", "answer before")
        self._score("base")
        own, note = asked_before(self._prepared, self.examples)
        if note:
            self._screen.say(f"  {note}", "yellow")
        if own is not None:
            stage = "answer before in its own form"
            self._screen.say("  once more in the model's own chat template:")
            own_answers = self._answer(decoder, stage, own)
            name = other_form(OWN)
            self.answers[name] = own_answers
            self._foresee(forecast, name, stage)
            self._score(name)
            template = self._choose(name, own)
        self._add_likelihood(decoder, "base", template, "likelihood before")

    def _choose(self, name: str, own: Template) -> Template:
        """Let the better of both forms be ``base``; the other keeps a name of its own. Returns the better one's."""
        template = self._prepared.template
        run, other = (means(self.verdicts[which]).get("score", 0.0) for which in ("base", name))
        better = other > run
        if better:
            beaten = other_form(template.name)
            if beaten == name:  # a template file of the user's that is called as the model's own is
                beaten = other_form("run")
            self.answers[beaten], self.answers["base"] = self.answers["base"], self.answers.pop(name)
            self.verdicts[beaten], self.verdicts["base"] = self.verdicts["base"], self.verdicts.pop(name)
            for which in ("base", beaten):
                self._keep(which)
            self._folder.forget_answers(name)
            name = beaten
        self.form = Before(OWN if better else template.name, name.removeprefix(other_form("")), name)
        self._screen.say(f"  its own form scores {other:.1f}, {template.name} {run:.1f}: before is {self.form.form}")
        return own if better else template

    def _answer(self, decoder: Decoder, stage: str, template: Template) -> list[Completion]:
        prepared, screen, options = self._prepared, self._screen, self._prepared.settings.generate
        if stage != "answer before in its own form":
            when = stage.removeprefix("answer ").capitalize()
            screen.head(f"{when}: answering {counted(len(self.examples), f'{self.part} row')}")
        with self._clock.stage(stage):
            with screen.bar("answering", len(self.examples)) as advance:

                def begin(known: int) -> None:
                    self._made = len(self.examples) - known
                    advance(steps=known)
                    if known:
                        of = counted(len(self.examples), "row")
                        screen.say(f"  {known:,} of {of} were answered before it was stopped")

                answers = self._crew.answer(prepared, decoder, template, self._kept(template), begin, advance)
            for line in unended(answers, options.max_new_tokens):
                screen.say(f"  {line}")
        return answers

    def _foresee(self, forecast: Forecast, which: str, stage: str) -> None:
        if self._made < len(self.examples):
            return  # the time is that of some of them
        batch_size = self._prepared.settings.generate.batch_size
        forecast.saw_answers(self.answers[which], batch_size, self._clock.seconds[stage])

    def _score(self, which: str) -> None:
        """Score answers by their agreement with the reference, and write both down."""
        texts = [completion.text for completion in self.answers[which]]
        no_room = frozenset(completion.row for completion in self.answers[which] if completion.finish == "no_room")
        self.verdicts[which] = score_offline(self.examples, texts, no_room=no_room)
        self._keep(which)
        self._say_score(which)

    def _keep(self, which: str) -> None:
        self._folder.write_responses(which, self.examples, self.answers[which])
        write_verdicts(self._answered(which).verdicts_at(OFFLINE, ScoreOptions()), self.verdicts[which])

    def _add_likelihood(self, decoder: Decoder, which: str, template: Template, stage: str) -> None:
        """Write down how likely the reference is in this form."""
        prepared = self._prepared
        with self._clock.stage(stage):
            whole = [replace(example, weight=1.0) for example in self.examples]
            rows = encode_many(whole, template, prepared.tokenizer, turns="last")
            kept = self._kept(template)
            likely = self._crew.likelihoods(prepared, decoder, rows, kept)
            write_verdicts(self._answered(which).verdicts_at(LIKELIHOOD, ScoreOptions()), likely)

    def _kept(self, template: Template) -> KeptAnswers:
        return KeptAnswers(self._journal, key_of(self._asked, template.hash), self.examples)

    def _answered(self, which: str) -> AnsweredRows:
        texts = tuple(completion.text for completion in self.answers[which])
        file = self._folder.path / "responses" / f"{which}.json"
        return AnsweredRows(which, tuple(self.examples), texts, file, self._folder)

    def _say_score(self, which: str) -> None:
        score = means(self.verdicts[which])
        if not score:
            self._screen.say("  no row has a score")
            return
        self._screen.say(
            f"  exact match {score['exact_match']:.1%}, chrF {score['chrf']:.1f}, "
            f"agreement {score['score']:.1f} of 100 (with the reference)"
        )
