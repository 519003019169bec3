"""Several answers of one model to each row, kept as they come.

Rows are sampled in blocks of a fixed size, each with a seed of its own, and a block goes to the journal when it is
done: what was stopped is taken up at its block, whose random numbers do not depend on the blocks before. (The weights'
own arithmetic may differ in the last bit with the number of passes before it; that can change a token only where the
random number hits the edge between two.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instil.ask.journal import Journal, key_of
from instil.assistant.assistant import Assistant
from instil.generate.answer import answer
from instil.model.load import file_hash
from instil.records import Example
from instil.runs.folder import RUN_FILE, RunFolder
from instil.synthesis.pairing import Candidate

ROWS_AT_ONCE = 16


def sample_rows(
    assistant: Assistant,
    model: str | Path,
    examples: Sequence[Example],
    count: int,
    journal: Journal,
    on_done: Callable[[], None] = lambda: None,
) -> list[list[Candidate]]:
    """``count`` answers to each row, in the order of the rows.

    Args:
        assistant: who answers, and with which options.
        model: where it was loaded from; the journal knows its answers by the weights' hash.
        examples: the rows.
        count: answers to each.
        journal: what has been sampled before, and where every answer goes.
        on_done: called after each answer.
    """
    weights = weights_hash(model)
    settings = assistant.options.model_dump(exclude={"batch_size", "seed"})
    samples: list[list[Candidate]] = []
    for start in range(0, len(examples), ROWS_AT_ONCE):
        block = examples[start : start + ROWS_AT_ONCE]
        seed = _seed(assistant.options.seed, start)
        texts = [[example.instruction, example.input, *_context(example)] for example in block]
        key = key_of("samples", weights, assistant.template.hash, settings, seed, count, texts)
        entry = _sound(journal.find(key), len(block), count)
        if entry is None:
            options = assistant.options.changed(seed=seed)
            asked = [example for example in block for _ in range(count)]
            completions = answer(
                assistant.decoder, assistant.tokenizer, assistant.template, asked, options, on_done
            )  # with an engine of its own, which remembers nothing of other blocks
            said = [[one.text, one.finish == "stop"] for one in completions]
            entry = {"row": block[0].row, "samples": [said[at : at + count] for at in range(0, len(said), count)]}
            journal.add(key, entry, counts=True)
        else:
            for _ in range(len(block) * count):
                on_done()
        samples += [
            [Candidate(text, sample, ended) for sample, (text, ended) in enumerate(mine)] for mine in entry["samples"]
        ]
    return samples


def _context(example: Example) -> list[str]:
    """What of a conversation a sample depends on besides its last question."""
    if not example.history and not example.steps and not example.tools:
        return []
    return [json.dumps([turn.as_json() for turn in example.turns[:-1]], sort_keys=True), example.tools]


def weights_hash(model: str | Path) -> str:
    """SHA-256 of the weights that `instil.assistant.assistant.load` would read."""
    path = Path(model)
    return file_hash(RunFolder(path).model if (path / RUN_FILE).is_file() else model)


def _seed(seed: int, start: int) -> int:
    """Of a block, by its first row's place."""
    return int.from_bytes(hashlib.sha256(f"{seed} {start}".encode()).digest()[:4]) >> 1


def _sound(entry: dict[str, Any] | None, rows: int, count: int) -> dict[str, Any] | None:
    """An entry of a journal, if it holds what `sample_rows` writes."""
    samples = entry.get("samples") if entry else None
    if not isinstance(samples, list) or len(samples) != rows:
        return None
    sound = all(
        isinstance(mine, list)
        and len(mine) == count
        and all(isinstance(one, list) and [type(part) for part in one] == [str, bool] for one in mine)
        for mine in samples
    )
    return entry if sound else None
