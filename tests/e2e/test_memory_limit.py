"""A model that no process could hold is trained by two that are killed when they take the memory for it.

The limit is kept by a parent that looks every few milliseconds at the pages that each process has filled itself
(``RssAnon``), and kills one that has more, as a system without memory does. ``RLIMIT_AS`` counts what torch maps and
nobody touches, ``RLIMIT_DATA`` each file of weights that is mapped to be read (safetensors maps them as what may be
written), and a cgroup needs rights that a test has not. Pages of files do not count: the system takes them back when it
needs them.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instil.errors import RankLost
from tests.conftest import single_bytes, tiny_reference
from tests.e2e.test_processes import ENVIRONMENT, PARTS, QUICK, data

__all__ = ["data"]
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is looked up in /proc"),
    pytest.mark.slow,
]
WIDTH, LAYERS = 384, 32  # 236 MB, in blocks of 7.4 MB
WHOLE = ("--processes", 2, "-s", "train.shard=no")
LONGEST = 240  # seconds


def llama(folder: Path, layers: int) -> Path:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 512}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": layers}
    ends = {"bos_token_id": 256, "eos_token_id": 256}
    tiny_reference("llama", vocab_size=257, **sizes, **heads, **ends).save_pretrained(folder)
    single_bytes().save(folder)
    return folder


def tuned(verb: str, data: Path, model: Path, out: Path, *how: object, limit: float = math.inf) -> tuple[int, str, int]:
    """Exit code, what was said, and the most memory (in bytes) that one of its processes was seen to have."""
    quick = (*QUICK, "-s", "keep.measure=false", "-s", "train.max_steps=2", "-s", "train.batch_size=2")
    told = (verb, data, "-m", model, "-o", out, *quick, *how)
    seen, until = 0, time.monotonic() + LONGEST
    with (
        (out.parent / f"{out.name}.txt").open("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "instil", *map(str, told)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=said,
        ) as launcher,
    ):
        while launcher.poll() is None:
            if time.monotonic() > until:
                launcher.terminate()
            for process in children(launcher.pid):
                taken = filled_by(process)
                seen = max(seen, taken)
                if taken > limit:
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.002)
        said.seek(0)
        return launcher.returncode, said.read(), seen


def children(process: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def filled_by(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


LORA = ("--method", "lora", "-s", "train.gradient_checkpointing=true")  # activations would take a third of a model


@pytest.mark.parametrize(
    ("verb", "how", "room"),
    [("train", LORA, 1.0), ("train", (), 2.6), ("run", LORA, 1.0), ("run", (), 2.6)],
    ids=["lora", "full", "lora-and-answers", "full-and-answers"],
)
def test_it_is_trained_where_it_cannot_be_held(
    verb: str, how: tuple[str, ...], room: float, data: Path, tmp_path: Path
) -> None:
    """What a process holds beside a model is measured with one of two layers; ``room`` is counted in models.

    In parts adapters take 0.8 with gradient checkpointing and 1.1 without, and training in full 2.1; where each holds
    all of it 2.3 and 4.8. Answers before and after add nothing to that. A checkpoint in one piece took 4.7, too.
    """
    small, large = llama(tmp_path / "small", 2), llama(tmp_path / "large", LAYERS)
    size = (large / "model.safetensors").stat().st_size - (small / "model.safetensors").stat().st_size
    code, said, without = tuned(verb, data, small, tmp_path / "first", *how, *PARTS)
    assert code == 0, said
    limit = without + room * size

    code, said, _ = tuned(verb, data, large, tmp_path / "whole", *how, *WHOLE, limit=limit)
    assert code == RankLost.exit_code, said  # so it is a limit
    code, said, most = tuned(verb, data, large, tmp_path / "parts", *how, *PARTS, limit=limit)
    assert code == 0, said
    assert most < limit
    assert (tmp_path / "parts" / "model" / "model.safetensors").stat().st_size > size
