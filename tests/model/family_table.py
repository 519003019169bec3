"""The table of docs/families.md, measured: ``python -m tests.model.family_table``, or ``make families``.

A row is a family. Its figures are the worst among its cases in `family_cases.CASES`: tiny random models that are
compared with transformers, PEFT and llama.cpp by the very functions of the tests. Only the names of real models and
the templates are not measured.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.machine import hardware
from instil.data.collate import collate, collate_shared
from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.load import load_decoder
from instil.recipes.export.export import export
from tests.closeness import difference
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES
from tests.model.files.gguf_files import write_gguf
from tests.model.test_families import both_gradients
from tests.model.test_lora import through_peft
from tests.model.test_parity import IDS_BT, both_logits, saved_and_opened
from tests.parity.test_every_family import both_answers, encoded_rows, loss_and_gradients, pairs_in_both_layouts
from tests.recipes.test_export_gguf import folder_of, for_llama_cpp, said_by_both

HEADER = (
    "family", "models", "logits", "gradients", "saved", "layouts", "cached answers", "adapters", "GGUF read",
    "GGUF written", "template",
)  # fmt: skip
MODELS = {  # of up to some ten billion parameters
    "gpt2": "GPT-2 124M to 1.5B, DistilGPT2",
    "llama": "Llama 3.1 8B, Llama 3.2 1B and 3B, SmolLM2, TinyLlama",
    "gemma3": "Gemma 3 270M and 1B",
    "qwen3": "Qwen3 0.6B to 8B",
    "qwen2": "Qwen2 and Qwen2.5 0.5B to 7B, Qwen2.5-Coder",
    "mistral": "Mistral 7B, Mistral NeMo 12B",
    "phi3": "Phi-3-mini, Phi-3.5-mini, Phi-4-mini",
    "smollm3": "SmolLM3 3B",
    "starcoder2": "StarCoder2 3B and 7B",
    "gpt_neox": "Pythia 70M to 12B",
    "gemma": "Gemma 2B and 7B",
    "gemma2": "Gemma 2 2B and 9B",
    "granite": "Granite 3.x 2B and 8B",
    "olmo2": "OLMo 2 1B and 7B",
    "olmo3": "Olmo 3 7B",
    "lfm2": "LFM2 350M to 2.6B",
}
OWN = "alpaca: its own marks are in no template here"
BASE = "alpaca: it has no marks"
TEMPLATE = {  # that has the marks of the family's instruct models
    "gpt2": BASE,
    "llama": "chatml for SmolLM2; else alpaca: its own marks are in no template here",
    "gemma3": OWN,
    "qwen3": "chatml",
    "qwen2": "chatml",
    "mistral": OWN,
    "phi3": "phi3: its marks are control tokens there; no `<\\|end\\|>` after a question",
    "smollm3": "chatml",
    "starcoder2": BASE,
    "gpt_neox": BASE,
    "gemma": OWN,
    "gemma2": OWN,
    "granite": OWN,
    "olmo2": "phi3: its marks are plain text there",
    "olmo3": "chatml",
    "lfm2": "chatml",
}
LAYOUTS = ("padded", "shared prefix", "pairs")
SAME = 1e-12  # what "equal in exact arithmetic" is in float64
IN_FEW_WORDS = {  # of what the export says
    r"no blocks\.\{i\}\.attention\.\S*bias": "biases in attention",
    r"no blocks\.\{i\}\.mlp\.\S*bias": "biases in the MLP",
    r"one without blocks\.\{i\}\.\S*bias": "no biases",
    r"one without head\.weight": "a tied head",
    r"no head\.weight": "a head of its own",
    r"no \d+ heads of \d+ in a width of \d+": "heads not as wide together as the model",
    r"GGUF has no words for (\w+)=": r"another `\1`",
    r"llama\.cpp computes an? \w+ model only (.+)\. Use": r"all but one \1",
    r"does not scale the rope of a \w+ model by '(\w+)'": r"rope scaled by \1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one case. Differences are relative to the greatest value, see `tests.closeness.difference`.

    Attributes:
        logits: from those of transformers, in float32.
        gradients: the same of all gradients.
        saved: of the logits of what transformers opens from a folder that is written here.
        layouts: of losses and gradients in float64, from rows one by one; for pairs, of forks from rows side by side.
        answers: how many greedy answers are those of transformers, of how many.
        adapters: of the logits of PEFT with an adapter that is written here, or the other way round.
        read: of the logits of a GGUF file that others wrote, None if it has no form there.
        said: how many texts are cut and gone on with in llama.cpp as here, of how many.
        but: what of the case is not so in llama.cpp.
    """

    logits: float
    gradients: float
    saved: float
    layouts: dict[str, float]
    answers: tuple[int, int]
    adapters: float
    read: float | None
    said: tuple[int, int]
    but: list[str]


def measure(case: str, path: Path) -> Figures:
    """Compare a tiny model with what others compute; ``path`` is an empty folder for their files."""
    logits, saved = [], []
    for tied in (True, False):
        theirs = tiny_reference(case, tied=tied)
        theirs.save_pretrained(path / f"theirs-{tied}")
        ours, wanted = both_logits(theirs, path / f"theirs-{tied}")
        again = saved_and_opened(path / f"theirs-{tied}", path / f"ours-{tied}")
        logits.append(difference([ours], [wanted]))
        with torch.no_grad():
            saved.append(difference([again(IDS_BT).logits], [wanted]))
    folder = path / "theirs-True"
    gradients, their_gradients = both_gradients(tiny_reference(case), folder)
    answers = [found == wanted for found, wanted in both_answers(tiny_reference(case), folder)]
    read = None
    if (in_gguf := CASES[case].gguf) is not None:
        theirs = tiny_reference(case, **in_gguf)
        write_gguf(theirs, path / "theirs.gguf")
        ours, wanted = both_logits(theirs, path / "theirs.gguf")
        read = difference([ours], [wanted])
    said, but = through_llama_cpp(case, path)
    return Figures(
        logits=worst(logits),
        gradients=difference(list(gradients.values()), [their_gradients[name] for name in gradients]),
        saved=worst(saved),
        layouts=layouts(load_decoder(folder, dtype=torch.float64)),
        answers=(sum(answers), len(answers)),
        adapters=worst([difference([ours], [wanted]) for ours, wanted in through_peft(case, path / "peft")]),
        read=read,
        said=(sum(said), len(said)),
        but=but,
    )


def layouts(model: Decoder) -> dict[str, float]:
    """How far losses and gradients of each layout are from those of rows one by one."""
    rows = encoded_rows()
    each = [loss_and_gradients(model, collate([row], 0)) for row in rows]
    alone = [sum(parts[1:], parts[0]) for parts in zip(*each, strict=True)]
    common = loss_and_gradients(model, collate_shared(rows[:-1]))
    with_last = [part + more for part, more in zip(common, each[-1], strict=True)]
    shared = [with_last, loss_and_gradients(model, collate_shared(rows))]
    return {
        "padded": difference(loss_and_gradients(model, collate(rows, 0)), alone),
        "shared prefix": worst([difference(found, alone) for found in shared]),
        "pairs": difference(*pairs_in_both_layouts(model)),
    }


def through_llama_cpp(case: str, path: Path) -> tuple[list[bool], list[str]]:
    """Which texts our export has as here, and what it refuses: of the case as it is, and of what llama.cpp can do."""
    said: list[bool] = []
    but: list[str] = []
    changes = for_llama_cpp(case) if CASES[case].gguf is not None else {}
    for number, changed in enumerate([{}, changes] if changes else [{}]):
        folder = folder_of(path / f"export-{number}", case, **changed)
        try:
            file = export(folder, "gguf", path / f"export-{number}.gguf").path
        except ModelError as error:
            but += [f"refused: {reason}" for reason in in_few_words(str(error))]
            continue
        spec, context = load_decoder(folder).spec, load_decoder(file).spec.context
        if context < spec.context:
            but.append("context cut to the window" if context in spec.windows else f"context cut to {context}")
        said += [ours == theirs for ours, theirs in said_by_both(folder, file)]
    return said, but


def in_few_words(message: str) -> list[str]:
    """What a refusal to export is about, or all that it says."""
    found = [match.expand(words) for form, words in IN_FEW_WORDS.items() for match in re.finditer(form, message)]
    return list(dict.fromkeys(found)) or [message.removesuffix(". Use --to hf")]


def worst(figures: Sequence[float]) -> float:
    """The greatest; not a number if one is none."""
    return float(torch.tensor(figures, dtype=torch.float64).max())


def cases_of(family: str) -> list[str]:
    return [case for case in CASES if case.partition("-")[0] == family]


def row(family: str) -> tuple[str, ...]:
    """The cells of a family."""
    found = []
    for case in cases_of(family):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(case, Path(folder)))
    read = [one.read for one in found if one.read is not None]
    return (
        f"`{FAMILIES[family].model_type}`",
        MODELS[family],
        shown(worst([one.logits for one in found])),
        shown(worst([one.gradients for one in found])),
        shown(worst([one.saved for one in found])),
        of_layouts({name: worst([one.layouts[name] for one in found]) for name in LAYOUTS}),
        of_counts([one.answers for one in found]),
        shown(worst([one.adapters for one in found])),
        f"`{FAMILIES[family].architecture_in_gguf}`, " + (shown(worst(read)) if read else "never"),
        of_llama_cpp(found),
        TEMPLATE[family],
    )


def shown(figure: float) -> str:
    """
    >>> shown(2.3e-06), shown(0.0)
    ('2e-6', '0')
    """
    return re.sub(r"e([+-])0+(\d)", r"e\1\2", f"{figure:.0e}").replace("e+0", "") if figure else "0"


def of_counts(counts: Sequence[tuple[int, int]]) -> str:
    return f"{sum(same for same, _ in counts)} of {sum(count for _, count in counts)}"


def of_layouts(figures: dict[str, float]) -> str:
    same = {name: figure for name, figure in figures.items() if figure <= SAME}
    others = [f"not {name}: {shown(figure)}" for name, figure in figures.items() if name not in same]
    if same:
        alike = ", ".join(same) if others else "all"
        others.insert(0, f"{alike}, {shown(worst(list(same.values())))}")
    return "; ".join(others)


def of_llama_cpp(found: Sequence[Figures]) -> str:
    reasons = list(dict.fromkeys(reason for one in found for reason in one.but))
    refused = [reason.removeprefix("refused: ") for reason in reasons if reason.startswith("refused: ")]
    cut = [reason for reason in reasons if not reason.startswith("refused: ")]
    same = f"same tokens in {of_counts([one.said for one in found])} texts"
    return "; ".join([same, *cut, *([f"refused: {', '.join(refused)}"] if refused else [])])


def foot() -> str:
    """What it was measured on, and with."""
    machine = hardware()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "xllamacpp"))
    return f"Measured by `make families` on {machine['cpu']} ({machine['system']}), with {packages} (llama.cpp)."


def main() -> None:
    """Print the table, and on stderr how far it is."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    print(f"| {' | '.join(HEADER)} |")
    print(f"|{' --- |' * len(HEADER)}")
    for number, family in enumerate(FAMILIES, 1):
        print(f"{number} of {len(FAMILIES)}: {family}", file=sys.stderr, flush=True)
        print(f"| {' | '.join(row(family))} |", flush=True)
    print(f"\n{foot()}")


if __name__ == "__main__":
    main()
