"""A model that answers: loaded from a run, a model folder, a GGUF file or a name."""

from __future__ import annotations

import filecmp
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instil.assistant.conversation import conversation_of
from instil.data.encoding import check_vocabulary, encode_prompt, stop_id
from instil.data.sources import examples_from
from instil.data.templates import OWN, Template, carries_its_own, find_template, is_kept, kept_template
from instil.data.templates.find import usual_template
from instil.data.tokenizers import Tokenizer, load_tokenizer
from instil.errors import DataError, ModelError, TemplateMismatch, UserError
from instil.generate.answer import answer, stream
from instil.generate.engine import Engine
from instil.machine import device_for
from instil.model.decoder import Decoder
from instil.model.files.peft import WEIGHTS, load_adapter
from instil.model.find import find_model, template_of
from instil.model.load import file_hash, load_decoder
from instil.model.lora import merge
from instil.model.rounded.weights import round_weights, weights_asked
from instil.records import Completion, Example
from instil.runs.folder import RUN_FILE, RunFolder
from instil.settings.options import AUTO, GenerateOptions


@dataclass(frozen=True)
class Assistant:
    """Decoder, tokenizer and template that belong together, and the engine that they answer with."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: Template
    options: GenerateOptions = field(default_factory=GenerateOptions)

    @functools.cached_property
    def engine(self) -> Engine:
        """What answers; it remembers beginnings, such as the template's preamble, from one request to the next."""
        return Engine(self.decoder)

    def respond(self, instruction: str, input: str = "", **generate: Any) -> str:
        """The answer to one instruction.

        Args:
            instruction: what is to be done.
            input: what it is to be done with, if anything.
            **generate: settings of generation for this answer (``max_new_tokens``, ``temperature``, ...).

        Raises:
            DataError: there is no instruction, or the prompt leaves no room in the model's context.
        """
        (said,) = self.respond_all([{"instruction": instruction, "input": input}], **generate)
        if said.finish == "no_room":  # an empty text would look like an answer
            raise DataError(
                f"the prompt has {said.prompt_tokens:,} tokens; the model's context is {self.decoder.spec.context:,}"
            )
        return said.text

    def respond_all(self, rows: Sequence[dict[str, Any]], **generate: Any) -> list[Completion]:
        """Answers to rows in Alpaca form, in their order; ``output`` may be absent.

        A row whose prompt leaves no room in the model's context has an empty answer with ``finish="no_room"``.

        Raises:
            DataError: a row has no instruction.
        """
        examples = examples_from(list(rows), need_output=False, offers=()).examples
        return self.respond_to(examples, self.options.changed(**generate))

    def respond_to(
        self,
        examples: Sequence[Example],
        options: GenerateOptions | None = None,
        on_done: Callable[[], None] = lambda: None,
    ) -> list[Completion]:
        """Answers to examples, in their order."""
        chosen = options or self.options
        self.engine.rows = chosen.batch_size
        return answer(self.decoder, self.tokenizer, self.template, examples, chosen, on_done, self.engine)

    def stream(self, instruction: str, input: str = "", **generate: Any) -> Iterator[str]:
        """The answer to one instruction in pieces, as they come; without the white space around it.

        Raises:
            DataError: the prompt leaves no room in the model's context, or its keys and values none in memory.
        """
        (example,) = examples_from([{"instruction": instruction, "input": input}], need_output=False).examples
        yield from self.stream_to(example, self.options.changed(**generate))

    def chat(self, messages: Sequence[Mapping[str, Any]], **generate: Any) -> str:
        """The next message of a conversation, given as OpenAI's interface has it (``role`` and ``content``).

        Raises:
            DataError: a message cannot be used, the last is not the user's, or the conversation leaves no room.
        """
        return "".join(self.stream_chat(messages, **generate))

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **generate: Any) -> Iterator[str]:
        """The same in pieces, as they come. What was computed of earlier turns is not computed again.

        Raises:
            DataError: as `chat`.
        """
        yield from self.stream_to(conversation_of(messages), self.options.changed(**generate))

    def stream_to(self, example: Example, options: GenerateOptions) -> Iterator[str]:
        """The answer to an example in pieces, as they come; without the white space around it.

        Raises:
            DataError: the prompt leaves no room in the model's context, or its keys and values none in memory.
        """
        prompt = encode_prompt(example, self.template, self.tokenizer, header=options.header)
        stop_ids = self.tokenizer.stop_ids | {stop_id(self.template, self.tokenizer)}
        header = self.template.preface(header=options.header)
        yield from stream(self.engine, self.tokenizer, prompt, stop_ids, options, header)


def load(
    path: str | Path,
    *,
    template: str | None = None,
    int8: bool = False,
    bf16: bool = False,
    adapter: str | Path | None = None,
    merged: bool = True,
    **generate: Any,
) -> Assistant:
    """Load an assistant from a run folder, a model folder, a GGUF file or a model's name.

    Args:
        path: where it is; a run folder stands for the model inside it.
        template: the prompt form, only for models that were not tuned here: a name, ``model`` for the model's own chat
            template, or a file; by default its own where it carries one, else ``alpaca``. What was tuned here keeps its
            own, in folders and files alike.
        int8: hold the weights of linear layers in eight bits. Answers come faster and are not exactly those of the
            model.
        bf16: hold them in bfloat16, half the memory to read; meant for processors that have units for it.
        adapter: a folder of LoRA adapters as `peft` writes it, or a run with one, to be merged into the model.
        merged: add the adapter to the model's weights; else it stays beside them (`instil.model.lora`).
        **generate: settings of generation, such as ``max_new_tokens``.

    Raises:
        ModelError: there is no such model, or it cannot be read, or the adapter is another model's.
        UserError: the adapter is the run's own, which is in its model already.
        SettingsError: both ``int8`` and ``bf16``.
        TemplateMismatch: the run's template is not the one it was tuned with, or another was asked for.
    """
    weights = weights_asked(int8=int8, bf16=bf16)
    found, settings = Path(path), GenerateOptions()
    stored: Template | None = None
    if (found / RUN_FILE).is_file():
        folder = RunFolder(found)
        find_model(found)  # whether it has one
        stored = folder.template()
        settings = settings.changed(**folder.read_settings()["settings"].get("generate", {}))
        found = folder.model
    else:
        found = find_model(path)
        stored = kept_template(found)
    beside = None if adapter is None else adapter_folder(Path(adapter), found)
    if beside is not None:
        stored = kept_template(beside) or stored  # what it was tuned with last
    tokenizer = load_tokenizer(found)
    if stored is not None and template not in (None, AUTO) and not is_kept(template, stored, found, tokenizer):
        raise TemplateMismatch(f"{path} was tuned with the template {stored.name!r}, not {template!r}")
    chosen, notes = stored, list[str]()
    if chosen is None and template not in (None, AUTO):
        chosen = find_template(str(template), found, tokenizer)
    elif chosen is None:
        chosen, notes = usual_template(found, tokenizer, template_of(path))
        if chosen.name != OWN and not notes and carries_its_own(found):
            notes.append(
                f"{path}: asked in the form {chosen.name!r}; its own chat template is used with --template {OWN}"
            )
    decoder = load_decoder(found, device=device_for("auto"), mapped=True)
    check_vocabulary(chosen, tokenizer, decoder.spec.vocab_size)
    decoder.notes += tuple(notes)
    if beside is not None:
        load_adapter(decoder, beside)
        if merged:
            merge(decoder)
        decoder.notes += tuple(_of_another_base(beside, found))
    round_weights(decoder, weights)
    return Assistant(decoder, tokenizer, chosen, settings.changed(**generate))


def adapter_folder(given: Path, model: Path) -> Path:
    """Where the adapters lie: in the folder given, or in a run's; not those that are in the model already."""
    folder = given
    if (given / RUN_FILE).is_file():
        folder = RunFolder(given).adapter
        if not folder.is_dir():
            raise ModelError(f"{given}: the run has no adapter folder; it was tuned in full, or stopped before its end")
    run = RunFolder(model.parent)
    own, its = folder / WEIGHTS, run.adapter / WEIGHTS
    both = (model.parent / RUN_FILE).is_file() and its.is_file() and own.is_file()
    if both and filecmp.cmp(its, own, shallow=False):
        raise UserError(f"{folder}: these adapters are in {model} already; leave the adapter out, or give their base")
    return folder


def _of_another_base(adapters: Path, model: Path) -> Iterator[str]:
    """That a run's adapters were trained on other weights than those of the model that they were put on.

    The name that the run was given says the same for less where it still leads to the model.
    """
    run = RunFolder(adapters.parent)
    if adapters.resolve() != run.adapter.resolve() or not (run.path / RUN_FILE).is_file():
        return
    facts = run.read_settings()
    named, trained_on = run.base(), facts["hashes"].get("model")
    there = Path(named).exists() and find_model(named).resolve() == model.resolve()
    if trained_on and not there and file_hash(model) != trained_on:
        yield (
            f"{adapters}: these adapters were trained beside other weights ({named}) than those of {model}; on these "
            "they say something else. Give the model that they were trained on, or take the run's own"
        )
