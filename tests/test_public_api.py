"""The names the outside relies on are there, and importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import instil


@pytest.mark.parametrize("name", instil.__all__)
def test_every_public_name_exists_and_is_explained(name: str) -> None:
    value = getattr(instil, name)
    assert name == "__version__" or (value.__doc__ or "").strip()


def test_the_names_of_the_house() -> None:
    promised = "finetune load score Template encode collate Decoder load_decoder train"
    assert set(promised.split()) <= set(instil.__all__)
    assert callable(instil.train)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fintune'"):
        _ = instil.fintune


@pytest.mark.parametrize("statement", ["import instil", "import instil.cli", "from instil import Example"])
def test_importing_does_not_load_torch(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_promised_names_work_where_they_were() -> None:
    from instil.model.files.peft import load_adapter
    from instil.model.find import find_model
    from instil.model.hub import find_model as earlier_find_model
    from instil.model.peft_folder import load_adapter as earlier_load_adapter

    assert earlier_find_model is find_model
    assert earlier_load_adapter is load_adapter
