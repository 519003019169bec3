"""What a family has to say: its names in the two file formats, and its configuration in words of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from instil.errors import ModelError
from instil.model.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Stored:
    """How a parameter of ours lies in a file: one tensor, or several joined along the first axis.

    ``transposed`` marks GPT-2's Conv1D, which keeps [in, out]; ``paired_heads`` names, for each tensor,
    whether its rows are in the order of neighbouring rotary pairs (Llama in GGUF).
    """

    names: tuple[str, ...]
    transposed: bool = False
    paired_heads: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """One family. ``{i}`` in a name stands for the number of the layer."""

    name: str
    prefix: str
    hub: Mapping[str, Stored]
    gguf: Mapping[str, Stored]
    spec_from_config: Callable[[Mapping[str, Any]], DecoderSpec]
    config_from_spec: Callable[[DecoderSpec], dict[str, Any]]
    spec_from_gguf: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], DecoderSpec]
    unused: tuple[str, ...] = ()  # endings of tensors that hold no weights


# Keys of config.json that change nothing about the logits of a plain forward pass.
HARMLESS = frozenset(
    """architectures model_type torch_dtype dtype transformers_version use_cache bos_token_id eos_token_id
    pad_token_id attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop initializer_range
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj n_ctx
    task_specific_params _name_or_path name_or_path pretraining_tp is_llama_config rope_interleaved
    transformers.js_config id2label label2id problem_type return_dict output_attentions
    output_hidden_states chunk_size_feed_forward is_encoder_decoder finetuning_task
    gradient_checkpointing mlp_dropout use_bfloat16 torchscript attn_implementation
    _attn_implementation_autoset tokenizer_class decoder_start_token_id sep_token_id prefix""".split()
)


def refuse_strangers(
    family: str,
    config: Mapping[str, Any],
    understood: Mapping[str, tuple[Any, ...]],
    file: str = "config.json",
) -> None:
    """Refuse a configuration that says something not implemented here.

    Args:
        family: its name, for the message.
        config: what the file says.
        understood: the keys read, each with the values that can be honoured (none: any value).
        file: its name, for the message.

    Raises:
        ModelError: naming the keys and values.
    """
    strange = [
        f"{key}={value!r}"
        for key, value in config.items()
        if value is not None and key not in understood and key not in HARMLESS
    ]
    strange += [
        f"{key}={config[key]!r}"
        for key, allowed in understood.items()
        if allowed and config.get(key) is not None and config[key] not in allowed
    ]
    if strange:
        raise ModelError(
            f"{file} of a {family} model sets {', '.join(sorted(strange))}, which is not implemented here; "
            "loading it anyway would give wrong answers"
        )
