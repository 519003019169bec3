"""What can go wrong with an export: one line, no traceback, and nothing half-written beside what was there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from instil.errors import ModelError
from instil.model.files.peft import save_adapter
from instil.recipes.export import export as verb
from instil.recipes.export.export import export
from instil.runs.folder import RunFolder
from tests.model.files.test_adapter_files import adapted
from tests.recipes.test_export import gpt2_folder
from tests.recipes.test_export_gguf import folder_of

WHOLE = ("hf", "gguf", "pth")
ADAPTERS = ("gguf-lora", "mlx-lora")
PROGRAM = """
import resource, sys
from pathlib import Path
from instil.cli import main
limit, form, model, adapter = int(sys.argv[1]), *sys.argv[2:]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = ["instil", "export", model, "--to", form, "--out", "out", *(["--adapter", adapter] if adapter else [])]
main()
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2_folder(tmp_path_factory.mktemp("gpt2") / "model")


def on_a_small_disk(work: Path, form: str, model: Path, limit: int) -> str:
    """The last line of an export where no file may grow beyond a limit, which fails where a full disk fails."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limit), form, str(model), ""],
        capture_output=True, text=True, cwd=work, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.rstrip().splitlines()[-1]


@pytest.mark.parametrize("form", ["pth", *(pytest.param(form, marks=pytest.mark.slow) for form in ("gguf", *ADAPTERS))])
def test_a_full_disk_leaves_nothing(form: str, gpt2: Path, lora_run: Path, tmp_path: Path) -> None:
    said = on_a_small_disk(tmp_path, form, lora_run if form in ADAPTERS else gpt2, 2_000)
    assert "File too large" in said or "torch could not write all of it; is the disk full?" in said, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("form", "part"), [("hf", "README.md"), ("gguf", "x.Modelfile"), ("gguf-lora", "x.jinja")])
def test_what_fails_at_the_last_file_is_gone_as_a_whole(
    form: str, part: str, lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card, the Modelfile or the chat template: without it an export is none."""
    written = verb.write_whole

    def full(path: Path, content: object, **how: object) -> None:
        if path.name == part:
            raise OSError(28, "No space left on device")
        written(path, content, **how)  # type: ignore[arg-type]

    for room in ("export", "adapters"):
        monkeypatch.setattr(f"instil.recipes.export.{room}.write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        export(lora_run, form, tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [*WHOLE, *ADAPTERS])
def test_places_where_nothing_can_be_made(form: str, lora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, says in (
        (tmp_path / "taken", "is there already; choose another --out"),
        (tmp_path / "file", "is there already; choose another --out"),
        (tmp_path / "link", "is there already; choose another --out"),
        (tmp_path / "file" / "x", "is a file; choose another --out"),
        (Path("/proc/x"), "choose another --out"),
        (tmp_path / ("n" * 250), "cannot be written: File name too long"),
    ):
        with pytest.raises(Exception, match=says) as told:
            export(lora_run, form, out)
        assert type(told.value).__module__ == "instil.errors"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link", "taken"]
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("form", ["gguf", "gguf-lora"])
def test_a_family_that_llama_cpp_does_not_have(form: str, lora_run: Path, tmp_path: Path) -> None:
    """Windows that it knows in no such model, for example; the folder for transformers is the way."""
    folder = folder_of(tmp_path / "hf", "gemma2-uncapped", max_position_embeddings=512)
    adapter = None
    if form == "gguf-lora":
        adapter = tmp_path / "adapter"
        save_adapter(adapted(folder, rank=2), adapter, "x")
    with pytest.raises(ModelError, match=r"Use --to hf|Take the merged model"):
        export(folder, form, tmp_path / "x.gguf", adapter=adapter, template="alpaca")
    assert not list(tmp_path.glob("x*"))
    if adapter is None:
        assert export(folder, "hf", tmp_path / "x").agreement.exact


def test_a_stopped_export_leaves_nothing(lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes while it is looked at again."""

    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "agreement", stopped)
    for form in ("hf", "gguf", *ADAPTERS):
        with pytest.raises(KeyboardInterrupt):
            export(lora_run, form, tmp_path / "x")
    assert not list(tmp_path.iterdir())
    assert RunFolder(lora_run).model.is_dir()
