"""The checks: each computes something in two ways that must come to the same, and says by how much they differ."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from instil.assistant.folder import export_folder
from instil.data.encoding import encode_many, encode_prompt
from instil.generate.engine import Engine
from instil.generate.request import Request, TokenLogprobs
from instil.model.decoder import Decoder
from instil.model.load import load_decoder
from instil.model.lora import adapters, merge
from instil.recipes.selftest.bench import Bench, Keeping, Step, apart, differing, scratch
from instil.runs.checkpoints import Checkpoints
from instil.tasks.adapters import SAME, adapt
from instil.tasks.task import Prepared
from instil.tasks.tune import tune
from instil.train.observer import Observer

# Equal in exact arithmetic, as float32 has it: tiny models come to 1e-5, and thirty layers of a real one near to that;
# what is wrong is wrong by far more.
E1: Final = 5e-5
PROMPTS, NEW = 2, 8  # that are answered, and the tokens of each answer
NATS: Final = 2e-4  # by which log-probabilities may be apart: 1e-5 of scores of about twenty
STEPS, TAKEN_UP = 4, 2  # of a short training of more than an epoch, and after how many another goes on


@dataclass(frozen=True, slots=True)
class Measured:
    """What a check found: how far two ways are apart, in a unit, how far they may be, and what else is wrong."""

    difference: float
    allowed: float
    unit: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that is promised, and how it is measured."""

    what: str
    how: str
    measure: Callable[[Bench], Measured]


def _steps(found: Step, wanted: Step) -> Measured:
    """Two steps that are equal in exact arithmetic."""
    losses = abs(found.loss - wanted.loss) / abs(wanted.loss)
    return Measured(max(losses, apart(found.gradients, wanted.gradients)), E1)


def shared(bench: Bench) -> Measured:
    return _steps(bench.usual(), bench.step(layout="padded"))


def accumulated(bench: Bench) -> Measured:
    """The rows of a micro-batch have other numbers of targets than those of the next: a mean of means would differ."""
    return _steps(bench.step(micro_batch=1), bench.usual())


def recomputed(bench: Bench) -> Measured:
    found, wanted = bench.step(gradient_checkpointing=True), bench.usual()
    return Measured(differing(found.gradients, wanted.gradients) + (found.loss != wanted.loss), 0, "numbers")


def cached(bench: Bench) -> Measured:
    """Greedy answers may say the same though positions are off, so what the model thought of each token counts, too."""
    prepared, decoder = bench.prepared, bench.decoder
    prompts = [encode_prompt(one, prepared.template, prepared.tokenizer) for one in prepared.split.train]
    room = decoder.spec.context - NEW
    prompts = [prompt for prompt in prompts if len(prompt) <= room][:PROMPTS]
    told: list[list[TokenLogprobs]] = [[] for _ in prompts]
    engine = Engine(decoder, rows=PROMPTS)
    for prompt, into in zip(prompts, told, strict=True):
        engine.submit(Request(prompt, NEW, logprobs=1, on_logprobs=into.append))
    for _ in engine.run():
        pass
    engine.close()
    apart = 0.0
    for prompt, said in zip(prompts, told, strict=True):
        text = list(prompt)
        for one in said:
            logprobs_V = bench.scores(decoder, tuple(text))[-1].float().log_softmax(-1)
            token = int(logprobs_V.argmax())
            apart = max(apart, abs(float(logprobs_V[token]) - one.logprob) if token == one.token else math.inf)
            text.append(token)
        apart = apart if len(said) == NEW else math.inf
    return Measured(apart, NATS, "nats")


def exported(bench: Bench) -> Measured:
    prepared, decoder = bench.prepared, bench.decoder
    with scratch() as folder:
        rows = prepared.split.train
        said = export_folder(decoder, prepared.tokenizer, prepared.template, folder / "model", rows)
        again = load_decoder(folder / "model", device=str(decoder.device))
        weights = differing(dict(again.named_parameters()), dict(decoder.named_parameters()))
        scores = [
            differing(*({"scores": bench.scores(one, ids)} for one in (again, decoder))) for ids in bench.tokens(2)
        ]
    return Measured(weights + sum(scores), 0, "numbers", "; ".join(line.replace(str(folder), "") for line in said))


def template(bench: Bench) -> Measured:
    """Tokenizers that do not keep white space or the form of letters are not asked to."""
    prepared, tokenizer = bench.prepared, bench.prepared.tokenizer
    whole = [replace(one, weight=1.0) for one in bench.examples]
    wrong = 0
    for example, row in zip(whole, encode_many(whole, prepared.template, tokenizer), strict=True):
        pieces = prepared.template.rendered(example).pieces
        written = "".join(piece.text or tokenizer.eos if piece.control else piece.text for piece in pieces)
        read = b"".join(
            tokenizer.token(index).encode() if (text := tokenizer.bytes_of(index)) is None else text
            for index in row.ids
        )
        begin = "".join(tokenizer.begin).encode()
        if not tokenizer.exact:
            wrong += _letters(read.decode(errors="replace")) not in (
                _letters(written), _letters("".join(tokenizer.begin) + written)
            )  # fmt: skip
        else:
            wrong += read not in (written.encode(), begin + written.encode())
    return Measured(wrong, 0, "rows")


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def merged(bench: Bench) -> Measured:
    """The second factors of fresh adapters are zero, so they are drawn here: else there would be nothing to merge."""
    decoder, ids = bench.decoder, bench.tokens(1)[0]
    adapt(decoder, bench.settings)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, _, layer in adapters(decoder):
            for parameter in layer.parameters():
                if parameter.requires_grad and not parameter.any():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=drawn))
    before = bench.scores(decoder, ids)
    merge(decoder)
    return Measured(apart({"scores": bench.scores(decoder, ids)}, {"scores": before}), SAME)


def resumed(bench: Bench) -> Measured:
    train = bench.settings.train.model_copy(update={"method": "lora", "learning_rate": 1e-3, "max_steps": STEPS})
    prepared = replace(bench.prepared, settings=bench.settings.model_copy(update={"train": train}))
    kept = Keeping(TAKEN_UP)
    wanted = _trained(bench, prepared, [kept])
    assert kept.state is not None
    with scratch() as folder:
        checkpoints = Checkpoints(folder)
        checkpoints.save(kept.state)
        found = checkpoints.newest()
        if found.state is None:
            return Measured(math.inf, 0, "numbers", "; ".join(found.damaged))
        decoder = bench.fresh()
        tune(prepared, decoder, resume=found.state)
    return Measured(differing(dict(decoder.named_parameters()), wanted), 0, "numbers")


def _trained(bench: Bench, prepared: Prepared, observers: list[Observer]) -> dict[str, Tensor]:
    decoder: Decoder = bench.fresh()
    tune(prepared, decoder, observers)
    return {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}


CHECKS: Final = (  # the last two change the model
    Check("padded = shared layout", "loss and gradients of one step, without padding and with", shared),
    Check("accumulated = one batch", "loss and gradients of one step, row by row and at once", accumulated),
    Check("checkpointed = kept", "loss and gradients, blocks computed again in backward and kept", recomputed),
    Check(
        "cached = uncached",
        f"{PROMPTS} answers and their log-probabilities, by the engine and by the whole text",
        cached,
    ),
    Check("exported = in memory", "weights and scores of the folder that is saved, loaded again", exported),
    Check("template bytes", "starter rows as text, and as ids put back into text", template),
    Check("merged = adapters", "scores with adapters beside the weights and in them", merged),
    Check("resumed = uninterrupted", f"weights after a training, and one taken up after step {TAKEN_UP}", resumed),
)
