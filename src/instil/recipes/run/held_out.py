"""The held-out rows of a run: answered and scored before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from instil.data.encoding import encode_many
from instil.errors import counted
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.likelihood import likelihoods
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import means, score_offline, trivial_baseline
from instil.generate.answer import answer, unended
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.records import Completion, Verdict
from instil.runs.answers import AnsweredRows, read_verdicts, write_verdicts
from instil.runs.baseline import copy_base_answers, reusable_run
from instil.runs.folder import RunFolder
from instil.settings.options import ScoreOptions
from instil.tasks.task import Prepared


class HeldOutAnswers:
    """The held-out rows, answered and scored before and after training."""

    def __init__(self, folder: RunFolder, prepared: Prepared, decoder: Decoder, clock: RunClock) -> None:
        self._folder, self._prepared, self._decoder = folder, prepared, decoder
        self._screen, self._clock = clock.screen, clock
        self.part, self.examples = prepared.held_out
        self.answers: dict[str, list[Completion]] = {}
        self.verdicts: dict[str, list[Verdict]] = {}
        self.reused: Path | None = None

    def before(self, forecast: Forecast, asked: str, runs: Sequence[Path]) -> None:
        """Answer as the base model does, or take the answers over from one of these runs that was asked the same."""
        self.reused = reusable_run(asked, runs)
        if self.reused is not None:
            self._screen.head("Before")
            self._screen.say(f"  answered the same already; taken over from {self.reused}")
            self.answers["base"] = copy_base_answers(self.reused, self._folder)
            self.verdicts["base"] = read_verdicts(self.reused / "scores" / "base.offline.jsonl")
            self._say_score("base")
        else:
            self._answer("base", "before")
            batch_size = self._prepared.settings.generate.batch_size
            forecast.saw_answers(self.answers["base"], batch_size, self._clock.seconds["answer before"])
        self.verdicts["echo"] = trivial_baseline(self.examples)

    def after(self) -> None:
        """Answer as the tuned model does."""
        self._answer("tuned", "after")

    def _answer(self, which: str, when: str) -> None:
        prepared, screen, options = self._prepared, self._screen, self._prepared.settings.generate
        screen.head(f"{when.capitalize()}: answering {counted(len(self.examples), f'{self.part} row')}")
        with self._clock.stage(f"answer {when}"):
            with screen.bar("answering", len(self.examples)) as advance:
                self.answers[which] = answer(
                    self._decoder, prepared.tokenizer, prepared.template, self.examples, options, advance
                )
            for line in unended(self.answers[which], options.max_new_tokens):
                screen.say(f"  {line}")
        with self._clock.stage(f"likelihood {when}"):
            self.verdicts[which] = self._keep(which)
        self._say_score(which)

    def _keep(self, which: str) -> list[Verdict]:
        """Write down the answers, their agreement with the reference, and how likely the reference is."""
        folder, prepared = self._folder, self._prepared
        folder.write_responses(which, self.examples, self.answers[which])
        texts = tuple(completion.text for completion in self.answers[which])
        no_room = frozenset(completion.row for completion in self.answers[which] if completion.finish == "no_room")
        answered = AnsweredRows(
            which, tuple(self.examples), texts, folder.path / "responses" / f"{which}.json", folder, no_room
        )
        verdicts = score_offline(self.examples, texts, no_room=no_room)
        write_verdicts(answered.verdicts_at(OFFLINE, ScoreOptions()), verdicts)
        whole = [replace(example, weight=1.0) for example in self.examples]
        rows = encode_many(whole, prepared.template, prepared.tokenizer, turns="last")
        likely = likelihoods(self._decoder, rows, prepared.tokenizer.eos_id, prepared.max_length)
        write_verdicts(answered.verdicts_at(LIKELIHOOD, ScoreOptions()), likely)
        return verdicts

    def _say_score(self, which: str) -> None:
        score = means(self.verdicts[which])
        if not score:
            self._screen.say("  no row has a score")
            return
        self._screen.say(
            f"  exact match {score['exact_match']:.1%}, chrF {score['chrf']:.1f}, "
            f"agreement {score['score']:.1f} of 100 (with the reference)"
        )
