"""Loading a model takes the memory of its weights once, whatever the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instil.model.decoder import batch_of_ids
from instil.model.files.pth import save_pth
from instil.model.load import blank_decoder, load_decoder
from instil.model.memory import LARGE, own_memory, untouched_zeros
from tests.model.files.gguf_files import write_gguf

MEASURE = """
import json, sys
from pathlib import Path
from instil.model.load import load_decoder

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

if sys.argv[1].endswith(".gguf"):
    import gguf.quants  # code, not weights
before = peak()
decoder = load_decoder(Path(sys.argv[1]))
weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
print(json.dumps({"grown": peak() - before, "weights": weights}))
"""


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 190 MB in all three forms: large enough that what Python needs hardly counts."""
    import transformers

    folder = tmp_path_factory.mktemp("middling")
    config = transformers.GPT2Config(
        vocab_size=20011, n_embd=512, n_layer=12, n_head=8, n_positions=128, n_inner=2048,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder / "hub")
    write_gguf(model, folder / "x.gguf")
    save_pth(load_decoder(folder / "hub"), folder / "x.pth")
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("form", ["hub", "x.pth", "x.gguf"])
def test_loading_holds_the_weights_once(form: str, middling: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(middling / form)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["weights"] > 180e6
    assert found["grown"] < 1.1 * found["weights"]


def test_what_shares_memory_in_a_file_is_apart_in_a_model(middling: Path) -> None:
    decoder = load_decoder(middling / "x.pth")
    assert torch.equal(decoder.head.weight, decoder.embed.weight)
    with torch.no_grad():
        decoder.head.weight[0, 0] += 1
    assert not torch.equal(decoder.head.weight, decoder.embed.weight)


def test_the_three_forms_are_one_model(middling: Path) -> None:
    ids = batch_of_ids(torch.arange(12).view(2, 6))
    with torch.no_grad():
        first, *others = [load_decoder(middling / form)(ids) for form in ("hub", "x.pth", "x.gguf")]
    assert all(torch.equal(first, other) for other in others)


def test_a_blank_decoder_has_shapes_and_no_memory(middling: Path) -> None:
    full = load_decoder(middling / "hub")
    blank = blank_decoder(full.spec)
    assert all(parameter.is_meta for parameter in blank.parameters())
    shapes = {name: parameter.shape for name, parameter in full.named_parameters()}
    assert {name: parameter.shape for name, parameter in blank.named_parameters()} == shapes
    assert blank.parameter_count == full.parameter_count


@pytest.mark.parametrize("count", [0, 3, LARGE // 4, LARGE])
def test_memory_of_its_own_can_be_used_like_any_other(count: int) -> None:
    found = own_memory((count, 1), torch.float32)
    assert found.shape == (count, 1)
    found.fill_(2.0).requires_grad_()
    (found * found).sum().backward()
    assert found.grad is not None
    assert torch.equal(found.grad, torch.full((count, 1), 4.0))


def test_zeros_take_memory_where_they_are_written() -> None:
    code = (
        "import torch; from instil.model.memory import untouched_zeros\n"
        "def size(): return int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20\n"
        "cpu = torch.device('cpu'); before = size()\n"
        "x = untouched_zeros((300, 1 << 18), torch.float32, cpu); print(size() - before)\n"
        "x[:100] = 1; print(size() - before); assert float(x.sum()) == 100 * (1 << 18)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    untouched, touched = map(int, done.stdout.split())
    assert untouched < 20
    assert 90 < touched < 150
    assert untouched_zeros((3, 2), torch.float64, torch.device("cpu")).tolist() == [[0, 0]] * 3
