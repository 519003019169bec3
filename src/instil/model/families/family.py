"""What a family has to say: its names in the two file formats, and its configuration in words of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from instil.errors import ModelError
from instil.model.spec import DecoderSpec, RopeScaling


@dataclass(frozen=True, slots=True)
class Stored:
    """How a parameter of ours lies in a file: one tensor, or several joined along the first axis.

    ``transposed`` marks GPT-2's Conv1D, which keeps [in, out]; ``paired_heads`` names, for each tensor,
    whether its rows are in the order of neighbouring rotary pairs (Llama in GGUF). ``one_added`` marks the
    norms of Gemma in GGUF, which hold the scale itself and not how far it is from one.
    """

    names: tuple[str, ...]
    transposed: bool = False
    paired_heads: tuple[bool, ...] = ()
    one_added: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One family. ``{i}`` in a name stands for the number of the layer.

    ``name`` is ours and that of its architecture in GGUF, ``model_type`` that of transformers.
    """

    name: str
    model_type: str
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
    _attn_implementation_autoset tokenizer_class decoder_start_token_id sep_token_id prefix
    cache_implementation""".split()
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


_ROPE_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def rope_scaling(family: str, settings: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling that ``rope_scaling`` or ``rope_parameters`` of a ``config.json`` describes.

    Raises:
        ModelError: it is of a kind, or has a setting, that is not implemented here.
        KeyError: a setting is missing.
    """
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in _ROPE_KINDS:
        raise ModelError(
            f"config.json of a {family} model scales its rope ({kind!r}), which is not implemented here; "
            f"read here: {', '.join(_ROPE_KINDS)}"
        )
    known: dict[str, tuple[Any, ...]] = dict.fromkeys(("rope_type", "type", "rope_theta", *_ROPE_KINDS[kind]), ())
    refuse_strangers(family, settings, {**known, "partial_rotary_factor": (1.0,)})
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(settings["factor"]))
    return RopeScaling(
        kind="llama3",
        factor=float(settings["factor"]),
        low=float(settings["low_freq_factor"]),
        high=float(settings["high_freq_factor"]),
        context=settings["original_max_position_embeddings"],
    )


def rope_settings(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Base and scaling as ``rope_parameters`` of transformers 5 has them."""
    settings: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.kind, "rope_theta": theta}
    if scaling is not None:
        settings["factor"] = scaling.factor
    if scaling is not None and scaling.kind == "llama3":
        settings |= {
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        }
    return settings


def rope_config(spec: DecoderSpec) -> dict[str, Any]:
    """The keys of ``config.json`` about rope where all layers turn alike, for old and new transformers."""
    settings = rope_settings(spec.rope_theta, spec.rope_scaling)
    return {
        "rope_theta": spec.rope_theta,
        "rope_scaling": None if spec.rope_scaling is None else settings,
        "rope_parameters": settings,
    }


def rope_of_config(family: str, config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the angles, as either generation of transformers writes them; the older comes first."""
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = settings.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return float(theta), rope_scaling(family, settings)
