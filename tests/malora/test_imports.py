"""What `import malora` brings in, and that PEFT knows the adapter whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import malora

ROOT = Path(__file__).parents[2]
KNOWN = "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known; assert known['MALORA'].__name__ == 'MaloraModel'"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["malora", "malora.training.options", "malora.errors"])
def test_it_imports_neither_torch_nor_peft(name):
    run(f"import sys, {name}; assert not {{'torch', 'peft', 'transformers'}} & sys.modules.keys()")


@pytest.mark.parametrize(
    "imports",
    [
        "import malora, peft",
        "import peft, malora",
        "import malora; from peft import PeftModel",
        "import malora.adapter.config",
        "import malora.adapter.core",
        "from malora import TrainingConfig; TrainingConfig()",
        "from malora import MaloraConfig",
        "import malora, importlib.util; importlib.util.find_spec('peft'); import peft",
        "import malora; from transformers.utils import is_peft_available; assert is_peft_available(); import peft",
    ],
)
def test_peft_knows_the_adapter(imports):
    run(f"{imports}; {KNOWN}; import sys, peft; assert 'malora' not in type(peft.__spec__.loader).__module__")


def test_what_is_public_is_there():
    assert sorted(malora.__all__) == malora.__all__
    assert all(getattr(malora, name) is not None for name in malora.__all__)
    assert set(malora.__all__) <= set(dir(malora))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        malora.nothing  # noqa: B018
