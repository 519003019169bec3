"""What other trainers call a setting, and what it is here: for who comes from TRL, axolotl, LlamaFactory or mlx-lm.

Names are as their documentation has them (2026-11); only where something here does the same is it named.
"""

from __future__ import annotations

_ON_ANSWERS = "data.train_on=response here, which is the default"
_WHOLE_ROWS = "data.train_on=all here"
_LENGTH = "data.max_length here"
_NO_PADDING = "what train.layout=shared does here, which is the default: no row is padded"
_BATCH = "train.batch_size here, which counts the rows of an optimizer step; train.micro_batch those computed at once"
_WARMUP = "train.warmup here, a share of all steps"

ELSEWHERE: dict[str, tuple[str, str]] = {
    "assistant_only_loss": ("TRL", _ON_ANSWERS),
    "completion_only_loss": ("TRL", _ON_ANSWERS),
    "train_on_responses_only": ("unsloth", _ON_ANSWERS),
    "padding_free": ("TRL", _NO_PADDING),
    "packing": ("TRL", _NO_PADDING),
    "max_length": ("TRL", _LENGTH),
    "max_seq_length": ("TRL", _LENGTH),
    "max_seq_len": ("mlx-lm", _LENGTH),
    "chat_template_path": ("TRL", "data.template here"),
    "chat_template": ("axolotl", "data.template here"),
    "dataset_text_field": ("TRL", "data.map here: --map FOUND=text"),
    "skip_prepare_dataset": ("TRL", "not needed here: rows are prepared once"),
    "per_device_train_batch_size": ("transformers", _BATCH),
    "micro_batch_size": ("axolotl", "train.micro_batch here"),
    "gradient_accumulation_steps": ("transformers", _BATCH),
    "num_train_epochs": ("transformers", "train.epochs here"),
    "num_epochs": ("axolotl", "train.epochs here"),
    "lr": ("", "train.learning_rate here"),
    "lr_scheduler_type": ("transformers", "train.schedule here"),
    "lr_scheduler": ("axolotl", "train.schedule here"),
    "warmup_ratio": ("transformers", _WARMUP),
    "warmup_steps": ("transformers", _WARMUP),
    "max_grad_norm": ("transformers", "train.clip here"),
    "eval_steps": ("transformers", "train.eval_every here"),
    "bf16": ("transformers", "train.precision=bf16 here"),
    "fp16": ("transformers", "not here; train.precision=bf16 is"),
    "load_in_4bit": ("transformers", "lora.base=nf4 here"),
    "load_in_8bit": ("transformers", "lora.base=int8 here"),
    "lora_r": ("axolotl", "lora.rank here"),
    "lora_rank": ("LlamaFactory", "lora.rank here"),
    "r": ("PEFT", "lora.rank here"),
    "lora_alpha": ("PEFT", "lora.alpha here"),
    "lora_target": ("LlamaFactory", "lora.targets here"),
    "target_modules": ("PEFT", "lora.targets here"),
    "lora_target_modules": ("axolotl", "lora.targets here"),
    "use_rslora": ("PEFT", "lora.scaling=alpha/sqrt(rank) here"),
    "use_dora": ("PEFT", "lora.dora here"),
    "train_on_inputs": ("axolotl", f"{_WHOLE_ROWS}; false is data.train_on=response, the default"),
    "roles_to_train": ("axolotl", "data.train_on here; a message's weight of 0 or 1 chooses among the assistant's"),
    "train_on_eos": ("axolotl", "not needed here: the end of an answer is always trained on"),
    "sample_packing": ("axolotl", _NO_PADDING),
    "pad_to_sequence_len": ("axolotl", "train.layout=padded here, with rows of a batch padded to its longest"),
    "sequence_len": ("axolotl", _LENGTH),
    "field_messages": ("axolotl", "data.map here: --map FOUND=messages"),
    "cutoff_len": ("LlamaFactory", _LENGTH),
    "train_on_prompt": ("LlamaFactory", _WHOLE_ROWS),
    "mask_history": ("LlamaFactory", "a weight of 0 on each earlier message of the assistant here (docs/shapes.md)"),
    "neat_packing": ("LlamaFactory", _NO_PADDING),
    "finetuning_type": ("LlamaFactory", "train.method here"),
    "stage": ("LlamaFactory", "train.objective here"),
    "pref_loss": ("LlamaFactory", "dpo.loss here"),
    "pref_beta": ("LlamaFactory", "dpo.beta here"),
    "loss_type": ("TRL", "dpo.loss here"),
    "mask_prompt": ("mlx-lm", _ON_ANSWERS),
    "iters": ("mlx-lm", "train.max_steps here"),
    "num_layers": ("mlx-lm", "not here: adapters are on all layers; lora.targets chooses among their matrices"),
}


def elsewhere(key: str) -> str:
    """What an unknown setting is here, if another trainer has it, as a clause for an error message.

    >>> elsewhere("train.assistant_only_loss")
    "; TRL's assistant_only_loss is data.train_on=response here, which is the default"
    >>> elsewhere("epoch")
    ''
    """
    name = key.rpartition(".")[2].strip().lstrip("-").replace("-", "_").lower()
    if name not in ELSEWHERE:
        return ""
    whose, here = ELSEWHERE[name]
    return f"; {whose}'s {name} is {here}" if whose else f"; {name} is {here}"
