"""What ``adapter_config.json`` of `peft` says: which modules have adapters, at which scale, and what is saved whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import regex

from instil.errors import ModelError
from instil.files import read_json_object

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
PATIENCE = 1.0  # seconds for one expression and one name: some of a file's expressions would take years
UNREADABLE = (regex.error, TypeError, ValueError, AttributeError, OverflowError, RecursionError, TimeoutError)
_UNDERSTOOD: tuple[Any, ...] = ("none", None, False, 0, [], {})
_ELSEWHERE = (  # what changes the base model, or more than the linear layers, or when an adapter acts
    "bias", "layer_replication", "use_qalora", "lora_bias", "alora_invocation_tokens", "target_parameters",
    "arrow_config", "corda_config", "megatron_config",
)  # fmt: skip
_FIRST_VALUES = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the base's weights, too


class AdapterConfig:
    """An opened ``adapter_config.json``.

    Raises:
        ModelError: it cannot be read, or says what is not implemented here.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CONFIG
        self._values = values = read_json_object(
            self.path, error=ModelError, advice="; wanted the folder of a LoRA adapter"
        )
        if values.get("peft_type") != "LORA":
            raise ModelError(f"{self.path}: an adapter of type {values.get('peft_type')!r}; read here: LORA")
        for key in _ELSEWHERE:
            if values.get(key) not in _UNDERSTOOD:
                raise ModelError(f"{self.path}: {key}={values[key]!r} is not implemented here")
        if values.get("init_lora_weights") not in _FIRST_VALUES:
            raise ModelError(
                f"{self.path}: init_lora_weights={values['init_lora_weights']!r} changes the base model, too, which is "
                "not implemented here; merge the adapter with peft"
            )
        self.dora = bool(values.get("use_dora"))
        self.keeps_tied = bool(values.get("ensure_weight_tying"))
        self.whole = self._names("modules_to_save") or ()
        self._targets, self._excluded = self._pattern("target_modules"), self._pattern("exclude_modules")

    def targets(self, found: Iterable[str], outer: Iterable[str]) -> Callable[[str], bool]:
        """Which modules have an adapter, as PEFT decides it by a module's name in the base model.

        Args:
            found: modules that have one in the file. Where the configuration names no targets they say it themselves:
                a projection that has one in a layer has one in every layer.
            outer: embedding and head, which are not meant by ``all-linear``.
        """
        if self._targets is None:
            ends = {re.sub(r"^.*\.\d+\.", "", module) for module in found}
            return lambda module: _is_called(module, ends)
        if isinstance(self._targets, str) and self._targets.lower() == ALL_LINEAR:
            inner = re.compile("(?!(" + "|".join(map(re.escape, outer)) + ")$).*")
            return lambda module: self._is_target(module, inner.pattern)
        return lambda module: self._is_target(module, self._targets)

    def is_whole(self, module: str) -> bool:
        """Whether a module, or one that it is in, is saved whole beside the adapters."""
        parts = module.split(".")
        return any(".".join(parts[:end]).endswith(name) for end in range(1, len(parts) + 1) for name in self.whole)

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's A and B is multiplied by."""
        try:
            wanted = _of(self._values.get("rank_pattern"), module, self._values.get("r", rank))
            alpha = float(_of(self._values.get("alpha_pattern"), module, self._values.get("lora_alpha", 8)))
        except UNREADABLE as error:
            raise ModelError(
                f"{self.path}: lora_alpha, alpha_pattern or rank_pattern cannot be read: {error}"
            ) from error
        if wanted != rank:
            raise ModelError(
                f"{self.path}: the rank of {module} is {wanted!r}, but {rank} in the file; they do not belong together"
            )
        if not math.isfinite(alpha):
            raise ModelError(f"{self.path}: lora_alpha of {module} is {alpha}")
        return alpha / math.sqrt(rank) if self._values.get("use_rslora") else alpha / rank

    def token_rows(self, embedding: str, head: str) -> dict[str, tuple[int, ...]]:
        """The ids whose rows are trained, of the embedding and of the head, by the names of their modules."""
        given = self._values.get("trainable_token_indices")
        if given in (None, [], {}):
            return {}
        by_name = given if isinstance(given, dict) else {embedding: given}
        found: dict[str, tuple[int, ...]] = {}
        for name, ids in by_name.items():
            module = next((module for module in (embedding, head) if module.endswith(name)), None)
            if module is None:
                raise ModelError(f"{self.path}: trainable_token_indices names {name!r}; wanted {embedding} or {head}")
            if not isinstance(ids, list) or not all(type(token) is int for token in ids):
                raise ModelError(f"{self.path}: trainable_token_indices of {name!r} is {ids!r}; wanted a list of ids")
            found[module] = tuple(ids)
        return found

    def _is_target(self, module: str, targets: str | Iterable[str] | None) -> bool:
        values = self._values
        try:
            if self._excluded and _is_called(module, self._excluded):
                return False
            if any(_begins(rf"(^|.*\.){name}($|\..*)", module) for name in self.whole):
                return False
            if isinstance(targets, str):
                return _is_called(module, targets)
            return _is_called(module, targets or ()) and _in_layers(
                module, values.get("layers_to_transform"), values.get("layers_pattern")
            )
        except UNREADABLE as error:
            raise ModelError(
                f"{self.path}: target_modules, exclude_modules, layers_to_transform or layers_pattern cannot be read: "
                f"{error}"
            ) from error

    def _pattern(self, key: str) -> str | tuple[str, ...] | None:
        """A regular expression, or ends of names."""
        value = self._values.get(key)
        return value if isinstance(value, str) else self._names(key)

    def _names(self, key: str) -> tuple[str, ...] | None:
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ModelError(f"{self.path}: {key}={value!r}; wanted a list of names")
        return tuple(value)


def _is_called(module: str, names: str | Iterable[str]) -> bool:
    """Whether a module is meant by a regular expression for its whole name, or by some ends of names."""
    if isinstance(names, str):
        return regex.fullmatch(names, module, timeout=PATIENCE) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _begins(pattern: str, module: str) -> Any:
    """The match of an expression of the file with the beginning of a module's name."""
    return regex.match(pattern, module, timeout=PATIENCE)


def _in_layers(module: str, layers: Any, pattern: Any) -> bool:
    """Whether a module is in one of the layers to be changed (none named: in any)."""
    if layers is None or layers == []:
        return True
    patterns = [pattern] if isinstance(pattern, str) and pattern else pattern or [r"[^.]*"]
    before = r".*?\." if not pattern else r"(?:^|.*?\.)"
    found = next(filter(None, (_begins(rf"{before}{one}\.(\d+)\.", module) for one in patterns)), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _of(pattern: Any, module: str, default: Any) -> Any:
    """What a pattern says of a module, as PEFT looks it up: a regular expression for the end of its name."""
    for key, value in (pattern or {}).items():
        if _begins(rf"(.*\.)?({key})$", module):
            return value
    return default
