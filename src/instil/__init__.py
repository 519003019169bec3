"""Teach a pretrained language model to follow instructions, and prove that it learnt to.

>>> import instil
>>> run = instil.finetune("rows.json", model="smollm2-135m", out="runs/mine")  # doctest: +SKIP
>>> instil.load("runs/mine").respond("Name three colours.")  # doctest: +SKIP

The parts, for those who build their own loop: `Template`, `encode`, `collate`, `Decoder`,
`load_decoder`, `train`. Names are imported when they are first used, so that ``import instil`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instil.assistant.assistant import Assistant as Assistant
    from instil.assistant.assistant import load as load
    from instil.batches import Batch as Batch
    from instil.data.collate import collate as collate
    from instil.data.encoding import encode as encode
    from instil.data.loader import Loader as Loader
    from instil.data.templates import Template as Template
    from instil.data.templates import template_named as template_named
    from instil.data.tokenizers import load_tokenizer as load_tokenizer
    from instil.model.decoder import Decoder as Decoder
    from instil.model.load import load_decoder as load_decoder
    from instil.model.spec import DecoderSpec as DecoderSpec
    from instil.recipes.compare import Compared as Compared
    from instil.recipes.compare import compare as compare
    from instil.recipes.compare_many import compare_many as compare_many
    from instil.recipes.run.run import Run as Run
    from instil.recipes.run.run import finetune as finetune
    from instil.recipes.score import score as score
    from instil.records import Completion as Completion
    from instil.records import Encoded as Encoded
    from instil.records import Example as Example
    from instil.records import Pair as Pair
    from instil.records import Verdict as Verdict
    from instil.settings.options import TrainOptions as TrainOptions

from instil.version import __version__ as __version__

_HOMES = {
    "collate": "data.collate",
    "encode": "data.encoding",
    "Loader": "data.loader",
    "Template": "data.templates",
    "template_named": "data.templates",
    "load_tokenizer": "data.tokenizers",
    "Decoder": "model.decoder",
    "DecoderSpec": "model.spec",
    "load_decoder": "model.load",
    "Assistant": "assistant.assistant",
    "load": "assistant.assistant",
    "Compared": "recipes.compare",
    "compare": "recipes.compare",
    "compare_many": "recipes.compare_many",
    "Run": "recipes.run.run",
    "finetune": "recipes.run.run",
    "score": "recipes.score",
    "Batch": "batches",
    "Completion": "records",
    "Encoded": "records",
    "Example": "records",
    "Pair": "records",
    "Verdict": "records",
    "TrainOptions": "settings.options",
}
__all__ = sorted([*_HOMES, "train", "__version__"])  # noqa: PLE0605 - a sorted list of strings


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module("instil.train")  # a room that can be called
    if name not in _HOMES:
        raise AttributeError(f"module 'instil' has no attribute {name!r}")
    return getattr(import_module(f"instil.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
