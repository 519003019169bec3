"""How long a run takes, from how much it computes and how fast a little of it went.

Work is counted in passes through the model and in positions computed (padding included, since it is
computed too); a pace says what each of both costs. So longest rows do not pass for all rows, nor a
batch of few rows for one of many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from instil.data.encoding import encode_prompt
from instil.data.loader import Loader
from instil.data.templates import Template
from instil.recipes.plan.work import WARM_UP, Work, answering, pace_of, work_of_sizes
from instil.records import Completion, Example
from instil.tasks.task import SAMPLE_TOKENS, Prepared, evaluator_for, loader_for
from instil.train.evaluation import Evaluation, Evaluator
from instil.train.metrics import StepRecord
from instil.train.observer import Observer
from instil.train.schedule import planned_steps
from instil.train.state import TrainState

SAMPLED_ROWS = 5000  # held-out rows that stand for all
LOOK_AT = 5  # steps after which a run says how long it will take


@dataclass(frozen=True, slots=True)
class Workload:
    """What training computes: how many steps, evaluations and samples there are, and the work of a mean one."""

    steps: int
    step: Work
    evaluations: int
    evaluation: Work
    samples: int
    sample: Work


def workload(prepared: Prepared, loader: Loader, evaluator: Evaluator) -> Workload:
    """Count the work of training without doing any of it. One epoch stands for all of them."""
    options = prepared.settings.train
    steps = planned_steps(len(loader), options)
    due, epochs = _due(evaluator, steps, len(loader))
    held_back = loader_for(prepared, "validation")
    parts = [held_back, loader] if options.evaluation == "book" else [held_back]
    looked_at = [_work_of(part, options.eval_batches) for part in parts if part is not None]
    by_evaluation = options.sample == "evaluation"
    return Workload(
        steps=steps,
        step=(1 / len(loader)) * _work_of(loader),
        evaluations=1 + due,
        evaluation=sum(looked_at, Work()),
        samples=(1 + due if by_evaluation else epochs) if prepared.sampled else 0,
        sample=answering(
            prompt_lengths(prepared, prepared.sampled), [SAMPLE_TOKENS] * len(prepared.sampled), len(prepared.sampled)
        ),
    )


def looking_before(prepared: Prepared) -> Work:
    """The work of looking at rows once before the first step; none where the task does not."""
    if not prepared.task.looks_before:
        return Work()
    loaders = [loader_for(prepared, "train"), loader_for(prepared, "validation")]
    return sum((_work_of(loader) for loader in loaders if loader), Work())


def _work_of(loader: Loader, limit: int = 0) -> Work:
    """The work of an epoch, or of so many of its first steps; of many steps some stand for all."""
    count = min(len(loader), limit or len(loader))
    sampled = range(count) if limit else loader.sampled()
    return (count / len(sampled)) * work_of_sizes(size for step in loader.sizes(steps=sampled) for size in step)


def prompt_lengths(prepared: Prepared, examples: Iterable[Example], template: Template | None = None) -> list[int]:
    """Tokens of each prompt, in the run's form or in another."""
    form, header = template or prepared.template, prepared.settings.generate.header
    return [len(encode_prompt(example, form, prepared.tokenizer, header=header)) for example in examples]


def reference_lengths(prepared: Prepared, examples: Iterable[Example]) -> list[int]:
    """Tokens of each reference answer, at most as many as are generated: what tuned answers come to."""
    limit = prepared.settings.generate.max_new_tokens
    return [min(len(prepared.tokenizer.encode(example.output)) + 1, limit) for example in examples]


def _due(evaluator: Evaluator, steps: int, in_an_epoch: int) -> tuple[int, int]:
    """How many evaluations come after the one before training, and how many epochs end."""
    ends = {*range(in_an_epoch, steps + 1, in_an_epoch), steps}
    return sum(evaluator.due(step, step in ends) for step in range(1, steps + 1)), len(ends)


class Forecast(Observer):
    """A run's guess at its own length, made after its first few steps from what it had to do anyway.

    Args:
        prepared: the run.
        ready: called once with the seconds that the run still takes, training and answers.
        answers: whether the held-out rows are answered after training.
    """

    def __init__(self, prepared: Prepared, ready: Callable[[float], None], *, answers: bool) -> None:
        loader = prepared.training
        self.work = workload(prepared, loader, evaluator_for(prepared, loader))
        self._ready = ready
        self._sizes = [work_of_sizes(step) for step in loader.sizes(steps=range(min(LOOK_AT, len(loader))))]
        self._at = min(LOOK_AT, self.work.steps - 1, len(self._sizes))
        self._after = Work()
        if answers:
            every = prepared.held_out[1]
            examples = every[:: -(-len(every) // SAMPLED_ROWS) or 1]
            self._after = (len(every) / max(len(examples), 1)) * answering(
                prompt_lengths(prepared, examples),
                reference_lengths(prepared, examples),
                prepared.settings.generate.batch_size,
            )
        self._steps: list[float] = []
        self._done = 0  # steps taken before this process, or before training went back
        self._told = False
        self._spent = 0.0
        self._evaluation = 0.0
        self._evaluated = 0
        self._samples = 0
        self._answers: list[tuple[Work, float]] = []

    def saw_answers(self, answers: Sequence[Completion], batch_size: int, seconds: float) -> None:
        """Some rows were answered."""
        made = [completion for completion in answers if completion.finish != "no_room"]
        prompts = [completion.prompt_tokens for completion in made]
        lengths = [len(completion.ids) + 1 for completion in made]
        self._answers.append((answering(prompts, lengths, batch_size), seconds))

    def saw_sample(self, answers: Sequence[Completion], seconds: float) -> None:
        """A sample was answered during training."""
        self._samples += 1
        if not self._steps:
            self.saw_answers(answers, len(answers), seconds)

    def on_evaluation(self, evaluation: Evaluation, seconds: float) -> None:
        """The first evaluation stands for all."""
        self._evaluated += 1
        self._evaluation = self._evaluation or seconds

    def on_resume(self, state: TrainState) -> None:
        """What is done already takes no more time; samples are taken to come with evaluations."""
        self._done, self._spent = state.progress.done, state.progress.seconds
        self._steps.clear()
        self._evaluated = sum(record.val_loss is not None for record in state.records)
        self._samples = min(self._evaluated, self.work.samples)

    def on_step(self, record: StepRecord) -> None:
        if not record.step:
            return
        self._steps.append(record.seconds - self._spent)
        self._spent = record.seconds
        if len(self._steps) == self._at and not self._told:
            self._told = True
            self._ready(self.seconds_left())

    def seconds_left(self) -> float:
        """What is still to come, by what has been seen so far."""
        skipped = WARM_UP if self._at > WARM_UP else 0
        step = pace_of(list(zip(self._sizes, self._steps, strict=False))[skipped:]).seconds(self.work.step)
        answers = pace_of(self._answers)
        return (
            (self.work.steps - self._done - len(self._steps)) * step
            + max(self.work.evaluations - self._evaluated, 0) * self._evaluation
            + (self.work.samples - self._samples) * answers.seconds(self.work.sample)
            + answers.seconds(self._after)
        )
