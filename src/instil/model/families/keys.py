"""The rows of a family's table: what a field of `DecoderSpec` is called in ``config.json`` and in GGUF's header.

A row is read both ways: a configuration becomes a spec by it, and a spec a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from instil.errors import ModelError
from instil.model.spec import DecoderSpec

MOST_LAYERS = 10_000


class Fields(dict[str, Any]):
    """Fields of a spec as a file says them; each is read when it is asked for, since some are defaults of others."""

    def __init__(self, rows: Iterable[Row], read: Callable[[Row, Fields], Mapping[str, Any]]) -> None:
        super().__init__()
        self._rows, self._read = {field: row for row in rows for field in row.fields}, read

    def take(self, said: Mapping[str, Any]) -> None:
        """Take fields over; layers are looked at before others say something of each of them.

        Raises:
            ValueError: there are more than any model has.
        """
        self.update(said)
        layers = self.get("layers")
        if isinstance(layers, int | float) and layers > MOST_LAYERS:
            raise ValueError(f"it speaks of {layers:,} layers; at most {MOST_LAYERS:,} are read")

    def __missing__(self, field: str) -> Any:
        self.take(self._read(self._rows[field], self))
        return self[field]


@dataclass(frozen=True, slots=True)
class Header:
    """A GGUF file's header: its values, all of which bear the architecture's name, and its tensors.

    ``shapes`` has all of them; ``tensor`` gives one, for what is no weight.
    """

    architecture: str
    values: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Tensor]

    def __getitem__(self, key: str) -> Any:
        return self.values[f"{self.architecture}.{key}"]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where the header lacks it."""
        return self.values.get(f"{self.architecture}.{key}", default)


class Row:
    """Some keys of a configuration, and the fields that they say. By itself it says none and is not written."""

    fields: tuple[str, ...] = ()
    understood: Mapping[str, tuple[Any, ...]] = {}  # keys of config.json with the values taken; none: any value
    optional = True  # whether config.json may lack all of them
    tensors: tuple[str, ...] = ()  # of GGUF that say something of a spec and are no weights

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        """The fields, as ``config.json`` says them; those that others say are known.

        Raises:
            KeyError: it lacks a key.
            ModelError: it says what is not implemented here.
        """
        return {}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        """The keys of ``config.json``."""
        return {}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        """The fields, as a GGUF file says them; errors as above."""
        return {}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        """The keys of GGUF's header, without the architecture's name; and tensors that are no weights, by theirs.

        Raises:
            ModelError: llama.cpp does not compute what this spec says.
        """
        return {}


@dataclass(frozen=True, slots=True)
class Default:
    """A key that may be missing (``blank``: or null, or zero) and its value then, or how other fields make it.

    ``missing`` is its value where it is missing, if that is not the same as where it is null.
    """

    key: str
    value: Any
    blank: bool = False
    missing: Any = None


_MISSING = object()


def look_up(key: str | Default, values: Mapping[str, Any] | Header, known: Fields) -> Any:
    """The value of a key; KeyError if it is missing and has no default."""
    if isinstance(key, str):
        return values[key]
    found = values.get(key.key, _MISSING)
    if found is _MISSING and key.missing is not None:
        return key.missing
    if found is _MISSING or (key.blank and not found):
        return key.value(known) if callable(key.value) else key.value
    return found


class Key(Row):
    """One field under its two names.

    Args:
        field: of `DecoderSpec`.
        config: its key in ``config.json``.
        gguf: its key in GGUF's header; or a function, where GGUF says it by its tensors or not at all.
    """

    def __init__(
        self, field: str, config: str | Default, gguf: str | Default | Callable[[Header, Fields], Any]
    ) -> None:
        self._field, self._config, self._gguf = field, config, gguf
        self._name = config.key if isinstance(config, Default) else config
        self.fields, self.understood, self.optional = (field,), {self._name: ()}, isinstance(config, Default)

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        return {self._field: look_up(self._config, config, known)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        return {self._name: getattr(spec, self._field)}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {self._field: self._gguf(header, known) if callable(self._gguf) else look_up(self._gguf, header, known)}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        value = getattr(spec, self._field)
        if callable(self._gguf) or value is None:
            return {}
        return {self._gguf.key if isinstance(self._gguf, Default) else self._gguf: value}


class Fixed(Row):
    """A key that says what is always so here: the value written (None: it is not), and others that mean the same."""

    def __init__(self, key: str, written: Any, *also: Any) -> None:
        self._written = {} if written is None else {key: written}
        self.understood = {key: (*self._written.values(), *also)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        return dict(self._written)


class Ignored(Row):
    """Keys that this family's class in transformers does not read, though others do, and that its folders may have."""

    def __init__(self, *keys: str) -> None:
        self.understood = dict.fromkeys(keys, ())


def vocabulary(header: Header, known: Fields) -> int:
    """The vocabulary's size, which GGUF says by the shape of its embedding."""
    return header.shapes["token_embd.weight"][0]


def tied(header: Header, known: Fields) -> bool:
    """Whether the embedding is the head, which GGUF says by having none."""
    return "output.weight" not in header.shapes


def attention_bias(header: Header, known: Fields) -> bool:
    """Whether there is a bias, which GGUF says by having one."""
    return "blk.0.attn_q.bias" in header.shapes


def mlp_bias(header: Header, known: Fields) -> bool:
    """The same of the MLP."""
    return "blk.0.ffn_gate.bias" in header.shapes


# Keys of config.json that change nothing about the logits of a plain forward pass, though they speak of a decoder.
HARMLESS = frozenset(
    """architectures model_type torch_dtype dtype transformers_version use_cache initializer_range n_ctx
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params _name_or_path name_or_path pretraining_tp is_llama_config rope_interleaved
    transformers.js_config id2label label2id problem_type return_dict output_attentions auto_map
    output_hidden_states chunk_size_feed_forward is_encoder_decoder is_decoder finetuning_task
    gradient_checkpointing use_bfloat16 torchscript tokenizer_class prefix _sliding_window_pattern
    cache_implementation attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _experts_implementation_internal output_router_logits
    num_logits_to_keep _commit_hash encoder_no_repeat_ngram_size encoder_repetition_penalty
    no_repeat_ngram_size tie_encoder_decoder pruned_heads num_beam_groups epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty""".split()
)
# Endings of such: ids of the tokenizer, what is dropped in training, first values of weights, losses of training alone.
DROPPED = (
    "dropout", "dropout_prob", "dropout_rate", "dropout_p", "_pdrop", "layerdrop", "drop_rate", "drop_prob",
    "drop_path", "drop_path_rate", "drop_path_prob", "stochastic_depth", "stochastic_depth_rate",
    "stochastic_depth_prob",
)  # fmt: skip
HARMLESS_ENDINGS = (
    *DROPPED, "_token_id", "_token_ids", "_token_index", "_tokens_id",
    "_loss_coef", "_loss_coefficient", "_initializer_range", "_initializer_factor", "_flash_attn_2_enabled",
    "use_flash_attn", "use_flash_attention", "use_flash_attention_2",
)  # fmt: skip
# What the name of a key holds that speaks of a part of a decoder, or of how its weights are kept.
SPEAKS_OF_A_DECODER = tuple(
    """act adapter alibi altup attend attention attn audio bias bidirectional block cap causal chunk clip compress
    context conv cross d_model decay decoder dff dim emb encoder eps expand expert factor feed_forward ffn gate
    gating group head hidden indexer inner intermediate kernel kv latent layer linear lora lru mamba mask mixer
    mla mlp moe mtp multi_query multiplier mup n_embd norm parallel patch position proj qk quant rank recurrent
    residual rope rotary router rwkv scal scoring share sink sliding smooth soft ssm state swiglu
    temperature_tuning text_config theta tie_ tied time_step topk vision vocab weight width window xpos yarn""".split()
)
_SCALES = ("multiplier", "scal", "factor")  # one says nothing, where nought does in others


def refuse_unread(family: str, config: Mapping[str, Any], understood: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a ``config.json`` that says something of the decoder that is not implemented here.

    What transformers does not read for a model's type changes nothing there, and is passed over here: settings of
    generation, notes of a tool, names of a task. Keys whose names speak of a decoder are not: they would have meant
    something to another class, or are misspelt, and are refused unless they say that there is no such thing.

    Raises:
        ModelError: naming the keys and values.
    """
    said = {
        key: value
        for key, value in config.items()
        if key in understood or (any(part in key for part in SPEAKS_OF_A_DECODER) and not _says_nothing(key, value))
    }
    refuse_strangers(family, said, understood)


def _says_nothing(key: str, value: Any) -> bool:
    """Whether a key that is not read here says that there is none of what it names."""
    if key in HARMLESS or key.endswith(HARMLESS_ENDINGS):
        return True
    if isinstance(value, list):
        return all(kind == "full_attention" for kind in value)
    if isinstance(value, bool | int | float):
        return value == (1 if any(part in key for part in _SCALES) and not isinstance(value, bool) else 0)
    return value is None or value in ("", {})


def dropped(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says that is dropped while the decoder is trained; not of heads that are not the decoder's.

    >>> dropped({"resid_pdrop": 0.1, "attention_dropout": 0.0, "classifier_dropout": 0.2, "layerdrop": None})
    {'resid_pdrop': 0.1}
    """
    others = ("summary", "classifier", "classification", "pooler")
    return {
        key: value for key, value in config.items() if value and key.endswith(DROPPED) and not key.startswith(others)
    }


def refuse_strangers(
    family: str,
    config: Mapping[str, Any],
    understood: Mapping[str, tuple[Any, ...]],
    file: str = "config.json",
) -> None:
    """Refuse a file, or a part of it, that says anything not implemented here.

    Args:
        family: its name, for the message.
        config: what the file says.
        understood: the keys read, each with the values that can be honoured (none: any value).
        file: its name, for the message.

    Raises:
        ModelError: naming the keys and values.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{_shown(config)} in {file}; wanted an object")
    strange = [
        f"{key}={_shown(value)}"
        for key, value in config.items()
        if value is not None and key not in understood and key not in HARMLESS
    ]
    strange += [
        f"{key}={_shown(config[key])}"
        for key, allowed in understood.items()
        if allowed and config.get(key) is not None and config[key] not in allowed
    ]
    if strange:
        raise ModelError(
            f"{file} of a {family} model sets {', '.join(sorted(strange))}, which is not implemented here; "
            "loading it anyway would give wrong answers"
        )


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
