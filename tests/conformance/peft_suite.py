"""Run PEFT's own test-suite over the MALoRA tuner.

The suite is not part of PEFT's wheel: this script fetches the source distribution of the installed PEFT, checks it, unpacks it
into a cache folder and runs those of its test files that are written for any tuner, with our configurations in place of
theirs. Only tests whose parameters name `MaloraConfig` are run and counted. Nothing of PEFT is copied into this repository.

Models of the Hugging Face Hub are replaced by tiny ones with random weights, made on the spot; nothing but the source
distribution is downloaded. Exit code 1 if a test fails, is skipped for a reason that is not in the tables below, or if fewer
tests are found than there should be.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHA256 = {"0.21.2": "b803ccfb3f3f316004d850284306687833a2235ea278fb56abc856203456142e"}
FILES = tuple(os.environ.get("SUITE_FILES", "test_custom_models.py").split(","))
MINIMUM = 1750  # fewer collected tests mean that the suite has changed its ways, not that all is well
NEEDED = ("parameterized", "scipy", "sklearn")  # imported by the suite; in the extra `test`

# --- the cases -----------------------------------------------------------------------------------------------------

SMALL = {"r": 2, "lora_alpha": 4, "num_experts": 4}  # scale 2, as the default: some tests train with a rate of 0.5
OPTIONS: dict[str, dict[str, Any]] = {
    "malora": {},
    "wide": {**SMALL, "expert_rank": 3, "shared_rank": 5},
    "shared router": {**SMALL, "shared_router": True},
    "frozen A": {**SMALL, "freeze_shared": True},
    "one of four": {**SMALL, "top_k": 1},
    "all of four": {**SMALL, "top_k": 4},
    "rslora": {**SMALL, "use_rslora": True},
    "moe_lora": {"variant": "moe_lora"},
    "hydra": {"variant": "hydra"},
    "lora": {"variant": "lora"},
}
TARGETS: dict[str, dict[str, Any]] = {
    "name": {"target_modules": "lin0"},
    "list": {"target_modules": ["lin0"]},
    "last": {"target_modules": ["lin1"]},
    "both": {"target_modules": ["lin0", "lin1"]},
    "saved": {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
}
ON_MODELS = ("malora", "shared router", "frozen A", "moe_lora", "hydra", "lora")  # options tried on transformers' models
OTHER_MODELS = ("MLP2", "MLP_LayerNorm", "EmbConv1D", "Conv2d", "MHA")  # each has an nn.Linear named lin0
DECODER_MODELS = ("tiny-llama", "tiny-opt")
CLASSIFIERS = ("tiny-llama-classifier",)


def custom_cases(config: type) -> list[tuple[Any, ...]]:
    """(test name, model, configuration, its arguments): every option with two targets, the variants with all ways to name one."""
    cases = []
    for option, settings in OPTIONS.items():
        whole = option in {"malora", "moe_lora", "hydra", "lora"}
        for target, modules in TARGETS.items():
            if whole or target == "both":
                cases.append((f"{option} {target}", "MLP", config, {**settings, **modules}))
    for model in OTHER_MODELS:
        # gradients of EmbConv1D are tiny; for other tuners the suite itself raises the learning rate there
        alpha = {"lora_alpha": 200} if model == "EmbConv1D" else {}
        cases.append((f"malora in {model}", model, config, {**SMALL, **alpha, "target_modules": ["lin0"]}))
    return cases


def pair_cases(config: type) -> list[tuple[Any, ...]]:
    """(test name, method, configuration, arguments of one adapter, of another) for two active adapters."""
    cases = []
    for variant in ("malora", "moe_lora", "hydra", "lora"):
        own = {"variant": variant, "init_weights": False}
        for name, one, two in (("same", ["lin0"], ["lin0"]), ("different", ["lin0"], ["lin1"])):
            cases.append(
                (
                    f"{variant} {name}",
                    "malora",
                    config,
                    {**own, "target_modules": one},
                    {**own, "target_modules": two, "init_seed": 1},
                )
            )
    return cases


def model_cases(config: type, task: str) -> list[tuple[Any, ...]]:
    """(configuration, arguments) on transformers' models; target_modules None is the default for the architecture."""
    return [(config, {"task_type": task, "target_modules": None, **OPTIONS[option]}) for option in ON_MODELS]


# --- what differs, and why -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Tests that have to fail, with this error: what PEFT asks for there is refused on purpose."""

    tests: str  # a regular expression for the function's name
    error: type[BaseException]
    message: str  # a regular expression for the error's text
    reason: str


DIFFERENCES = (
    Difference(
        r"test_merge_layers.*|test_safe_merge|test_disable_adapters_with_merging|test_delete_merged_adapter_.*"
        r"|test_multiple_active_adapters_merge_and_unmerge|test_sequential_merge_.*|test_unmerge_after_.*",
        NotImplementedError,
        "cannot be merged.*export_lora",
        "an adapter whose experts depend on the token cannot be merged into the weights; the error names export_lora",
    ),
    Difference(
        r"test_forward_b?float16(_no_autocast)?",
        NotImplementedError,
        "cannot be merged.*export_lora",
        "the forward passes in half precision ran, then the test merges (as above)",
    ),
    Difference(
        r"test_adding_multiple_adapters_with_bias_raises",
        ValueError,
        "trains no biases",
        "bias = 'all' is refused by the configuration",
    ),
)

# Reasons for which the suite itself skips tests, as regular expressions, each with why that is right for this tuner.
ACCEPTED_SKIPS = {
    r"Testing bias warnings only for": "a warning about biases, which this adapter does not train",
    r"Skip tests for Llama models because layers have no bias": "as the suite says: Llama's layers have no biases to merge",
    r"(test )?does not apply to|[Tt]est not applicable|Mixed adapter batches not supported": (
        "written for other methods (prompts, mixed batches, weighted sums of adapters)"
    ),
    r"Multiple active adapters with modules_to_save": "PEFT does not support several active adapters with modules_to_save",
}

# Warnings that the suite turns into errors, and that another release of transformers than the suite's own gives to PEFT itself.
KNOWN_WARNINGS = (
    "`is_gradient_checkpointing` is deprecated:FutureWarning",
    "`gradient_checkpointing_enable` is deprecated:FutureWarning",
)


# --- fetching and unpacking ----------------------------------------------------------------------------------------


class SuiteUnavailable(Exception):
    """The source distribution cannot be had."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/glotloom` or `~/.cache/glotloom`, or a folder for temporary files where that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glotloom"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / "glotloom"
    return folder


def fetch(version: str, cache: Path) -> Path:
    """The archive of this version: from the cache, or by pip."""
    file = cache / f"peft-{version}.tar.gz"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", f"peft=={version}"]
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            done = subprocess.run([*command, "--dest", folder], capture_output=True, text=True, check=False)
            found = Path(folder) / file.name
            if done.returncode or not found.is_file():
                last = (done.stderr.strip().splitlines() or ["it left no archive"])[-1]
                raise SuiteUnavailable(f"pip could not download the source of peft {version}: {last}\nGive it with --sdist FILE.")
            found.replace(file)
    check(file, version)
    return file


def check(file: Path, version: str) -> None:
    """Refuses an archive other than the one that was reviewed."""
    expected = SHA256.get(version)
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if expected is None:
        raise SuiteUnavailable(f"no checksum of peft {version} is known: look at {file}, then add {actual} to SHA256 in {__file__}")
    if actual != expected:
        raise SuiteUnavailable(f"{file}: sha256 {actual}, expected {expected}; delete the file and start again")


def unpack(source: Path, into: Path) -> None:
    """The suite as a package `tests` in this folder; `source` is an archive or an unpacked folder."""
    if source.is_dir():
        if not (source / "tests").is_dir():
            raise SuiteUnavailable(f"{source}: it has no folder tests; give the unpacked source distribution of PEFT")
        shutil.copytree(source / "tests", into / "tests")
        shutil.copy(source / "pyproject.toml", into)
    else:
        with tarfile.open(source) as archive:
            archive.extractall(into, filter="data")
        (inner,) = into.glob("peft-*")
        for part in ("tests", "pyproject.toml"):
            (inner / part).rename(into / part)
    (into / "tests" / "__init__.py").touch()


def make_models(folder: Path) -> None:
    """Tiny transformers' models with random weights, named as in `DECODER_MODELS` and `CLASSIFIERS`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    llama = LlamaConfig(**shape, **tokens, intermediate_size=24, num_key_value_heads=2, tie_word_embeddings=False)
    LlamaForCausalLM(llama).save_pretrained(folder / "tiny-llama")
    LlamaForSequenceClassification(llama).save_pretrained(folder / "tiny-llama-classifier")
    OPTForCausalLM(OPTConfig(**shape, **tokens, ffn_dim=24, word_embed_proj_dim=16)).save_pretrained(folder / "tiny-opt")


def pretend_diffusers() -> None:
    """The suite imports one name of diffusers for tests that are not run here."""
    if importlib.util.find_spec("diffusers") is None:
        stub = types.ModuleType("diffusers")
        stub.__spec__ = importlib.machinery.ModuleSpec("diffusers", None)
        stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
        sys.modules["diffusers"] = stub


# --- running -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts of what happened, by reason."""

    collected: int = 0
    passed: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # failed as they have to
    skipped: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


class Plugin:
    """Puts our cases into the suite's tables and keeps only the tests that got one."""

    def __init__(self, config: type, theirs: type, models: Path) -> None:
        self.config, self.theirs = config, theirs
        self.tally = Tally()
        folders = {"test_decoder_models.py": DECODER_MODELS, "test_seq_classifier.py": CLASSIFIERS}
        self.models = {file: [str(models / name) for name in names] for file, names in folders.items()}

    def cases(self, names: tuple[str, ...], file: str) -> list[Any] | None:
        """Ours for a `parametrize` of these argument names; None for a table that is none of our business."""
        task = "SEQ_CLS" if file == "test_seq_classifier.py" else "CAUSAL_LM"
        tables: dict[tuple[str, ...], Callable[[], list[Any]]] = {
            ("test_name", "model_id", "config_cls", "config_kwargs"): lambda: custom_cases(self.config),
            ("test_name", "tuner_method", "config_cls", "config_kwargs_1", "config_kwargs_2"): lambda: pair_cases(self.config),
            ("config_cls", "config_kwargs"): lambda: model_cases(self.config, task),
            ("config_cls",): lambda: [self.config],
            ("config_class",): lambda: [self.config],
            ("config_class", "mandatory_kwargs"): lambda: [(self.config, settings) for settings in OPTIONS.values()],
        }
        return tables[names]() if names in tables else None

    def pytest_generate_tests(self, metafunc: Any) -> None:
        file = Path(metafunc.module.__file__).name
        original = metafunc.parametrize

        def parametrize(argnames: Any, argvalues: Any, *args: Any, **kwargs: Any) -> None:
            names = tuple(name.strip() for name in argnames.split(",")) if isinstance(argnames, str) else tuple(argnames)
            if names == ("model_id",) and file in self.models:
                argvalues = self._put(argvalues, self.models[file])
            elif _mentions(argvalues, self.theirs) and (ours := self.cases(names, file)) is not None:
                argvalues = self._put(argvalues, ours)
            original(argnames, argvalues, *args, **kwargs)

        metafunc.parametrize = parametrize

    @staticmethod
    def _put(table: Any, ours: list[Any]) -> list[Any]:
        """In place where the table is a list, which other tests may share; then it is ours already."""
        if isinstance(table, list):
            table[:] = ours
            return table
        return ours

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        import pytest

        mine = [item for item in items if hasattr(item, "callspec") and self.config in item.callspec.params.values()]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
        items[:] = mine
        self.tally.collected = len(mine)
        for item in mine:
            for difference in DIFFERENCES:
                if re.fullmatch(difference.tests, item.originalname):
                    item.add_marker(
                        pytest.mark.xfail(
                            raises=pytest.RaisesExc(difference.error, match=difference.message),
                            strict=True,
                            reason=difference.reason,
                        )
                    )

    def pytest_runtest_logreport(self, report: Any) -> None:
        tally = self.tally
        if report.failed:
            tally.failed.append(f"{report.nodeid} ({report.when})\n{report.longreprtext}")
        elif report.when == "call" and report.passed:
            tally.passed += 1
        elif report.skipped and hasattr(report, "wasxfail"):
            tally.refused[report.wasxfail] += 1
        elif report.skipped:
            said = report.longrepr[2].removeprefix("Skipped: ")
            why = next((why for pattern, why in ACCEPTED_SKIPS.items() if re.search(pattern, said)), None)
            if why is None:
                tally.failed.append(f"{report.nodeid}\nskipped for a reason that is not in ACCEPTED_SKIPS: {said}")
            else:
                tally.skipped[why] += 1


def _mentions(values: Any, theirs: type) -> bool:
    """Whether a table of parameters is for any tuner: then LoRA is in it (or, by now, we are)."""
    from malora import MaloraConfig

    wanted = {theirs, MaloraConfig}
    rows: Iterable[Any] = values if isinstance(values, (list, tuple)) else ()
    return any(cell in wanted for row in rows for cell in (row if isinstance(row, tuple) else (row,)) if isinstance(cell, type))


def run(suite: Path, models: Path, select: str | None) -> tuple[int, Tally]:
    """pytest's exit code and the counts."""
    pretend_diffusers()
    import pytest
    from peft import LoraConfig

    from malora import MaloraConfig

    plugin = Plugin(MaloraConfig, LoraConfig, models)
    os.chdir(suite)
    sys.path.insert(0, str(suite))
    options = [
        "-q",
        "--no-header",
        "--no-summary",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "--override-ini",
        "addopts=",
        "--rootdir",
        ".",
    ]
    for warning in KNOWN_WARNINGS:
        options += ["-W", f"ignore:{warning}"]
    if select:
        options += ["-k", select]
    code = pytest.main([*options, *(f"tests/{name}" for name in FILES)], plugins=[plugin])
    return int(code), plugin.tally


def show(tally: Tally, code: int, minimum: int) -> bool:
    """Prints the result; true if all is well."""
    for entry in tally.failed:
        print(f"\nFAILED {entry}")
    print()
    for title, counts in (("skipped by PEFT's suite", tally.skipped), ("refused on purpose", tally.refused)):
        for reason, count in counts.most_common():
            print(f"{count:6} {title}: {reason}")
    print(
        f"{tally.passed} passed, {tally.skipped.total()} skipped and {tally.refused.total()} refused by reason, "
        f"{len(tally.failed)} failed, of {tally.collected} tests of this tuner"
    )
    if tally.collected < minimum:
        print(f"only {tally.collected} tests were found, expected at least {minimum}: has the suite been rearranged?")
    return not tally.failed and tally.collected >= minimum and code == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="Needs: pip install 'glotloom[test]'"
    )
    parser.add_argument(
        "--sdist", type=Path, metavar="PATH", help="PEFT's source distribution, archive or unpacked (default: by pip)"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where downloaded archives are kept (default: ~/.cache/glotloom)"
    )
    parser.add_argument("-k", dest="select", metavar="EXPRESSION", help="run some of the tests only, as pytest's -k")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # before any of them is imported
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"PEFT's suite needs {', '.join(missing)}: pip install 'glotloom[test]'", file=sys.stderr)
        return 2
    version = importlib.metadata.version("peft")
    with tempfile.TemporaryDirectory(prefix="peft-suite-") as folder:
        work = Path(folder)
        try:
            source = options.sdist.resolve() if options.sdist else fetch(version, options.cache or default_cache())
            if source.is_file():
                check(source, version)
            unpack(source, work)
        except (SuiteUnavailable, OSError, tarfile.TarError) as error:
            print(error, file=sys.stderr)
            return 2
        make_models(work / "models")
        before = Path.cwd()
        try:
            code, tally = run(work, work / "models", options.select)
        finally:
            os.chdir(before)
    return 0 if show(tally, code, 0 if options.select else MINIMUM) else 1


if __name__ == "__main__":
    sys.exit(main())
