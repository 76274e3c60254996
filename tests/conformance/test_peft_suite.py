"""PEFT's own tests pass over the tuner, but for what is refused on purpose. See peft_suite.py, which also runs by itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("peft_suite.py")


@pytest.mark.slow
@pytest.mark.real
def test_peft_s_own_suite_is_green_over_the_tuner():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    if done.returncode == 2:  # nothing was run
        pytest.skip(done.stderr.strip().splitlines()[0])
    last = next((line for line in reversed(done.stdout.splitlines()) if " tests of this tuner" in line), "")
    assert done.returncode == 0, done.stdout[-4000:]
    counts = [int(number) for number in re.findall(r"\d+", last)]
    passed, _skipped, _refused, failed, collected = counts
    assert failed == 0 and passed > collected / 2, last
