"""Tiny models of every family, made by transformers with awkward sizes, and small data files."""

from __future__ import annotations

import copy
import gc
import json
import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import register_random, settings
from matplotlib.figure import Figure
from tokenizers import pre_tokenizers

import instil
from instil.data.byte_level import END_OF_TEXT, byte_level, gpt2_files
from instil.data.tokenizer_files import pair_of
from instil.data.tokenizers import FastTokenizer
from instil.model.find import find_model
from tests.general import little_material
from tests.model.family_cases import CASES

# The same examples in every run, so that a change's tests fail by the change alone. New ones are looked for with
# `pytest --hypothesis-profile=searching`.
settings.register_profile("same-every-time", deadline=None, derandomize=True, database=None)
settings.register_profile("searching", deadline=None)
settings.load_profile("same-every-time")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes name no test: packed ones hold the time at which they were made, which is another in each process.

    Processes that collect tests by other names refuse to run them (pytest-xdist).
    """
    return argname if isinstance(val, bytes | bytearray) else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep all that was read and collected out of later searches for garbage.

    Runs search before they take memory anew, and going through a million objects took a quarter of a short run's time.
    """
    gc.collect()
    gc.freeze()


class _TorchNumbers:
    """Lets hypothesis begin every example from the same state of torch's own generator."""

    def seed(self, value: int) -> None:
        torch.manual_seed(value)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_TORCH = _TorchNumbers()  # hypothesis keeps a weak reference
register_random(_TORCH)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Weights that a test draws do not hang on the tests that ran before it in the same process."""
    torch.manual_seed(0)
    random.seed(0)


# Tests that look at what is drawn; a run of a tiny model spends a fifth of its time on pictures.
DRAWING = ("test_training.py", "test_probe.py", "test_sweep.py", "test_chapter7.py", "test_report.py")


@pytest.fixture(scope="module", autouse=True)
def _few_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Curves are drawn where somebody looks at them; elsewhere a file with the right beginning stands for one."""
    if request.node.path.name in DRAWING:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", stands_for_a_picture)
        yield


@pytest.fixture(scope="session", autouse=True)
def _little_material() -> Iterator[None]:
    """What runs measure besides their rows is little, where a run has two seconds."""
    with little_material():
        yield


def stands_for_a_picture(figure: Figure, path: Path, **how: Any) -> None:
    """Write what begins as a picture does."""
    Path(path).write_bytes(b"%PDF-1.4\n" if str(path).endswith(".pdf") else b"\x89PNG\r\n\x1a\n")


GPT2_VOCABULARY = 50257
TINY_VOCABULARY = 5000  # a tokenizer of so many tokens is read within a tenth of the time of GPT-2's
TINY_END = TINY_VOCABULARY - 1  # <|endoftext|>
BOOK_DATA = Path(__file__).parents[2] / "shared" / "data" / "book"


def tiny_reference(family: str, *, vocab_size: int = 97, tied: bool = True, seed: int = 0, **changes: Any) -> Any:
    """A random model of transformers, of a case of `tests.model.family_cases.CASES`.

    ``changes`` are put over the values of its configuration there.
    """
    import transformers

    torch.manual_seed(seed)
    common = {"vocab_size": vocab_size, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 1}
    # A copy, because transformers writes into the dictionaries it is given.
    values = copy.deepcopy({**common, **CASES[family].config, **changes})
    kind = getattr(transformers, CASES[family].model)
    _keep_modules()
    model = kind(kind.config_class(**values))
    for parameter in model.parameters():  # biases and norms are constants at first, which would hide mistakes
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.2)
    return model.eval()


@cache
def _keep_modules() -> None:
    """What transformers consists of, likewise, as soon as it is read."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of nearly no size, with the beginning of GPT-2's vocabulary: enough for whole runs."""
    return make_tiny(tmp_path_factory.mktemp("tiny-llama"))


def make_tiny(folder: Path, tokenizer: FastTokenizer | None = None, seed: int = 1) -> Path:
    """Make that model in a folder; or one for another tokenizer, or with other weights."""
    tokenizer = tokenizer or short_gpt2()
    tiny_reference("llama", vocab_size=tokenizer.vocab_size, seed=seed).save_pretrained(folder)
    tokenizer.save(folder)
    end = tokenizer.eos_id
    for name in ("config.json", "generation_config.json"):
        stored = json.loads((folder / name).read_text())
        stored.update(eos_token_id=end, bos_token_id=end, max_position_embeddings=512)
        if name == "generation_config.json":
            del stored["max_position_embeddings"]
        (folder / name).write_text(json.dumps(stored))
    return folder


def make_tinier(folder: Path) -> Path:
    """Make a random Llama in a folder with a vocabulary of single bytes, which is loaded and saved in a moment."""
    ends = {"bos_token_id": 256, "eos_token_id": 256, "max_position_embeddings": 512}
    tiny_reference("llama", vocab_size=257, seed=1, **ends).save_pretrained(folder)
    single_bytes().save(folder)
    return folder


def single_bytes() -> FastTokenizer:
    """A byte-level vocabulary without merges: 256 bytes, and the end token as 256."""
    ids = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return FastTokenizer(byte_level({**ids, END_OF_TEXT: 256}, [], "gpt-2", {END_OF_TEXT: 256}), END_OF_TEXT)


@cache
def gpt2() -> FastTokenizer:
    """GPT-2's tokenizer, read once for all that do not change it."""
    return FastTokenizer.gpt2()


@cache
def smollm2() -> FastTokenizer:
    """SmolLM2's, likewise."""
    return FastTokenizer.from_gguf(find_model("smollm2-135m"))


# Words that GPT-2 learnt late and the rows and templates of many tests have ("Ġ" is a space, as in its files).
LATE = (
    *(f"Ġ{number}" for number in range(100)),
    *"Ġtask Ġdescribes Ġinstruction ĠInstruction ĠInput ĠResponse ĠWrite Ġappropriately Ġcompletes".split(),
    *"### Below Double user start istant .<".split(),
)


def short_gpt2() -> FastTokenizer:
    """GPT-2's tokenizer with some of its merges: the first ones, and those of `LATE`, so that rows stay as long."""
    lines = (gpt2_files() / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    pairs = [pair_of(line) for line in lines]
    made_by = {first + second: rank for rank, (first, second) in enumerate(pairs)}
    kept, open_ = set(), [word for word in LATE if word in made_by]
    while open_:
        rank = made_by[open_.pop()]
        kept.add(rank)
        open_ += [part for part in pairs[rank] if part in made_by]
    rank = 0
    while len(kept) < TINY_END - 256:
        kept.add(rank)
        rank += 1
    merges = [pairs[rank] for rank in sorted(kept)]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in merges), END_OF_TEXT]
    ids = {token: index for index, token in enumerate(tokens)}
    return FastTokenizer(byte_level(ids, merges, "gpt-2", {END_OF_TEXT: TINY_END}), END_OF_TEXT)


def rows(count: int) -> list[dict[str, str]]:
    """Rows that differ from one another."""
    return [
        {"instruction": f"Double the number {n}.", "input": "" if n % 2 else f"n = {n}", "output": f"It is {2 * n}."}
        for n in range(count)
    ]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Forty rows as JSON."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows(40)), encoding="utf-8")
    return path


SEPARATORS = "\u2028 \u2029 \x85 \x0b \x1c"  # str.splitlines() cuts at each of them, JSON Lines at none


@pytest.fixture(scope="session")
def plain_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the template "plain" on forty rows of a file, every one with line separators in its text."""
    folder = tmp_path_factory.mktemp("plain")
    lines = [
        json.dumps({**row, "instruction": f"{row['instruction']}{SEPARATORS}!"}, ensure_ascii=False) for row in rows(40)
    ]
    (folder / "rows.jsonl").write_bytes("\n".join(lines).encode())
    return instil.finetune(
        folder / "rows.jsonl",
        model=tiny_folder,
        out=folder / "run",
        template="plain",
        max_steps=2,
        learning_rate=1e-2,  # so that it says something else than before
        max_new_tokens=3,
    ).path


@pytest.fixture
def copied_run(plain_run: Path, tmp_path: Path) -> Path:
    """That run to be damaged."""
    return Path(shutil.copytree(plain_run, tmp_path / "run"))
