"""The command `glotloom`, one file a family of commands. Exit codes: 0 done, 1 failed while working, 2 the input is wrong.

Torch and Prefect take seconds to import, so commands import what they need themselves.
"""

from __future__ import annotations

import warnings

import click

from flows.cli.build import build, demo, recipes
from flows.cli.clean import decontaminate, dedup, identify, parallel
from flows.cli.release import doctor, explain, export, report
from flows.cli.train import export_lora, train
from pipeline import __version__

# What transformers and PEFT will rename concerns their callers, not the users of a command.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\b")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="glotloom")
def main() -> None:
    """Build multilingual fine-tuning data and train MALoRA adapters on it.

    Start with `glotloom demo`. Then copy a shipped recipe, point it at your own sources and teacher, and run `glotloom build`
    and `glotloom train`. Every command can be killed and run again: build and train go on where they stopped.
    """


for _command in (
    build,
    decontaminate,
    dedup,
    demo,
    doctor,
    explain,
    export,
    export_lora,
    identify,
    parallel,
    recipes,
    report,
    train,
):
    main.add_command(_command)
