"""What people are told of a build on the way and after it."""

import json

from flows.progress import ProgressBar, usage_in_words
from pipeline.engine.step import StepReport


def report(stage: str) -> StepReport:
    return StepReport(
        stage=stage, unit_in="passages", unit_out="rows", rows_in=3, rows_used=2, rows_out=2, dropped={"too_short": 1}
    )


def test_only_what_this_build_asked_for_is_told(tmp_path, capsys):
    used = {"requests": 1200, "retries": 3, "failed": 0, "cached": 7, "prompt_tokens": 9000, "completion_tokens": 800, "cost": 0.5}
    (tmp_path / "usage.json").write_text(
        json.dumps({stage: used | {"teacher": "main"} for stage in ("grounded-en", "grounded-zh")})
    )
    with ProgressBar() as progress:
        progress("grounded-zh", 3, 3)
        progress.report(report("grounded-zh"))
        progress.report(report("grounded-en"))  # finished before

    assert list(usage_in_words(tmp_path, progress.made)) == [
        "grounded-zh: teacher main, 1200 requests (3 retries), 0 failed, 7 answers from the ledger; 9,000 + 800 tokens, cost 0.50"
    ]
    assert len(list(usage_in_words(tmp_path))) == 2
    assert "grounded-zh: 3 passages in, 2 rows out, 1 left (too_short 1)" in capsys.readouterr().err
