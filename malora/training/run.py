"""Trains a MALoRA adapter on a dataset folder, from the base model to the report."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from dataclasses import replace as replace_fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import get_peft_model
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from malora.adapter.parameters import parameter_report
from malora.errors import InputError
from malora.training.base_model import identify_base, load_base
from malora.training.data import Dropped, Source, find_files
from malora.training.encode import Encoded, EncodedRow, encode, encode_prompt
from malora.training.evaluate import evaluate, generate, pick_examples
from malora.training.options import ADAPTER_KEYS, MIXTURE_KEYS, TrainingConfig
from malora.training.run_folder import FORMAT, RunFolder, fingerprint, read_json, write_json
from malora.training.schedule import group_by_length, schedule
from malora.training.trainer import MaloraTrainer, Scheduled, last_checkpoint

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """``reused``: the same run was finished before. ``record``: the content of ``training.json``."""

    out: Path
    reused: bool
    record: dict[str, Any]


def train_adapter(
    config: TrainingConfig,
    data: Path,
    out: Path,
    *,
    progress: Progress | None = None,
    log: Log | None = None,
    replace: bool = False,
) -> TrainingResult:
    """Trains on ``data/train`` and measures ``data/validation`` before and after; ``out`` gets the adapter and reports.

    A test split is never read. The same settings, data, versions and machine give the same bytes. Killed, it goes on
    from its last checkpoint; finished, it returns at once. ``progress(phase, done, total)`` is called often.
    With ``replace`` a finished adapter of another run in ``out`` gives way. With ``config.baseline`` a LoRA of equal size is
    trained after it, in as much time again, and its losses stand beside the adapter's. Raises InputError for what the user can
    mend.
    """
    data, out = Path(data), Path(out)
    source = find_files(data)
    base = identify_base(config.base_model)
    settings = asdict(config)
    if not config.baseline:
        del settings["baseline"]  # so that it makes no other run of what was finished without it
    folder = RunFolder(out, fingerprint(config=settings, data=source.fingerprint(), base_model=base))
    if (record := folder.finished()) is not None:
        folder.sweep()
        return TrainingResult(out=out, reused=True, record=record)
    folder.prepare(replace=replace)
    progress, log = progress or (lambda *_: None), log or logging.getLogger("malora").info
    kept = folder.work / "trained.json"  # what a run that was killed while its baseline trained has done already
    if kept.is_file():
        record, timings = read_json(kept)
    else:
        run = _Run(config, source, folder, progress, log)
        record = {"base_model": base, "config": settings, "fingerprint": folder.fingerprint, "format": FORMAT, **run()}
        timings = run.timings
        del run  # and its model
        if config.baseline and PartialState().is_main_process:
            write_json(kept, [record, timings])
    if config.baseline:
        begin = time.monotonic()
        record["baseline"] = _baseline(config, data, folder.work / "baseline", record["parameters"], progress, log)
        timings["baseline_s"] = round(time.monotonic() - begin, 2)
    if PartialState().is_main_process:
        folder.finish(folder.work / "adapter", record, {**timings, "total_s": sum(timings.values())})
    return TrainingResult(out=out, reused=False, record=record)


def _baseline(
    config: TrainingConfig, data: Path, out: Path, parameters: dict[str, Any], progress: Progress, log: Log
) -> dict[str, Any]:
    """A plain LoRA of as many parameters, trained on the same rows in the same order with the same settings.

    lora_alpha stays, so its scale falls with its rank, as LoRA's publication has it.
    """
    rank = max(1, round(parameters["lora_rank_of_equal_size"]))
    plain = {field.name: field.default for field in fields(TrainingConfig) if field.name in MIXTURE_KEYS}
    settings = {**plain, "variant": "lora", "r": rank, "baseline": False, "generation_tokens": 0}
    record = train_adapter(
        replace_fields(config, **settings),
        data,
        out,
        progress=lambda phase, done, total: progress(f"baseline: {phase}", done, total),
        log=lambda text: log(f"baseline: {text}"),
    ).record
    return {
        "r": rank,
        "trainable": record["parameters"]["trainable"],
        "loss": record["loss"],
        "validation": record["validation"]["after"],
    }


class _Run:
    """One training run; ``__call__`` reads as the list of its phases."""

    def __init__(self, config: TrainingConfig, source: Source, folder: RunFolder, progress: Progress, log: Log) -> None:
        self.config = config
        self.source = source
        self.folder = folder
        self.progress = progress
        self.log = log
        self.timings: dict[str, float] = {}
        self.trainer: MaloraTrainer

    def __call__(self) -> dict[str, Any]:
        with self._phase("base model"):
            model, tokenizer = self._model()
        with self._phase("tokenise"):
            train, validation = self._encode(tokenizer)
        self.trainer = self._trainer(model, train.rows)
        before = self._before(model, tokenizer, validation.rows)
        with self._phase("train", counted=True):
            history = self._train(model)
        with self._phase("validation after", counted=True):
            after = self._evaluate(model, validation.rows, "validation after")
        with self._phase("generations"):
            examples = self._generations(model, tokenizer)
        generations = [{**old, "after": new["before"]} for old, new in zip(before["generations"], examples, strict=True)]
        adapter = self.config.adapter()
        return {
            "adapter": {key: getattr(adapter, key) for key in ADAPTER_KEYS},
            "generations": generations,
            "loss": history,
            "parameters": _parameters(model),
            "routing": after.routing,
            "rows": {
                "train": len(train.rows),
                "validation": len(validation.rows),
                "truncated": train.truncated + validation.truncated,
                "without_labels": sorted(train.without_labels + validation.without_labels),
                "dropped": sorted([row.id, row.reason] for row in train.dropped + validation.dropped),
            },
            "validation": {"before": before["validation"], "after": after.losses},
        }

    @contextmanager
    def _phase(self, name: str, *, counted: bool = False) -> Iterator[None]:
        """Times a phase; one that is ``counted`` reports its own progress."""
        if not counted:
            self.progress(name, 0, 1)
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        key = name.replace(" ", "_") + "_s"
        self.timings[key] = round(self.timings.get(key, 0.0) + seconds, 2)
        self.log(f"{name}: {seconds:.1f} s")
        if not counted:
            self.progress(name, 1, 1)

    def _model(self) -> tuple[Any, PreTrainedTokenizerBase]:
        config = self.config
        if torch.cuda.is_available():  # the same bytes on one machine, also there
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        set_seed(config.seed)
        model, tokenizer = load_base(config.base_model, dtype=_dtype(config))
        try:
            return get_peft_model(model, config.adapter()), tokenizer
        except (ValueError, TypeError) as error:
            raise InputError(f"training.{str(error).splitlines()[0]}") from None

    def _encode(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Encoded, Encoded]:
        for file in self.source.test:
            self.log(f"{file}: a test split by its name; not read")
        dropped: dict[str, list[Dropped]] = {"train": [], "validation": []}
        train = encode(self.source.rows("train", dropped["train"]), tokenizer, self.config.max_tokens)
        counts: dict[str, int] = {}
        chosen = []
        for row in self.source.rows("validation", dropped["validation"]):
            counts[row.stratum] = counts.get(row.stratum, 0) + 1
            if counts[row.stratum] <= self.config.eval_rows_per_stratum:
                chosen.append(row)
        validation = encode(chosen, tokenizer, self.config.max_tokens)
        for split, encoded in (("train", train), ("validation", validation)):
            encoded.dropped[:0] = dropped[split]
            for row_dropped in encoded.dropped:
                self.log(f"row {row_dropped.id}: {row_dropped.reason}; dropped")
            for name in encoded.without_labels:
                self.log(f"row {name}: no answer within the first {self.config.max_tokens} tokens; dropped")
        if not train.rows:
            raise self._no_rows(train)
        return train, validation

    def _no_rows(self, train: Encoded) -> InputError:
        if train.without_labels or not train.dropped:
            return InputError(
                f"{self.source.root}: no row has an answer within the first {self.config.max_tokens} tokens; "
                "raise training.max_tokens"
            )
        first = train.dropped[0]
        return InputError(f"{self.source.root}: none of the training rows can be used; the first, {first.id}: {first.reason}")

    def _trainer(self, model: Any, rows: list[EncodedRow]) -> MaloraTrainer:
        config = self.config
        arguments = _arguments(config, self.folder.work)
        per_step = config.batch_size * config.gradient_accumulation * arguments.world_size
        steps = config.max_steps or max(1, math.ceil(config.epochs * len(rows) / per_step))
        arguments.max_steps = steps
        arguments.warmup_steps = math.ceil(config.warmup_ratio * steps)
        arguments.logging_steps = math.ceil(steps / 500)
        arguments.save_steps = math.ceil(config.save_steps / arguments.logging_steps) * arguments.logging_steps
        order = schedule([row.stratum for row in rows], rows=steps * per_step, temperature=config.temperature, seed=config.seed)
        dataset = Scheduled(rows, group_by_length(order, [len(row.tokens) for row in rows], per_step))
        return MaloraTrainer(model, arguments, dataset, lambda done, total: self.progress("train", done, total))

    def _before(self, model: Any, tokenizer: PreTrainedTokenizerBase, rows: list[EncodedRow]) -> dict[str, Any]:
        """Loss and examples of the untrained adapter, which is the base model; kept, since a resumed run has lost it."""
        kept = self.folder.work / "before.json"
        if kept.is_file():
            return dict(read_json(kept))
        with self._phase("validation before", counted=True):
            losses = self._evaluate(model, rows, "validation before").losses
        with self._phase("generations"):
            examples = self._generations(model, tokenizer)
        before = {"validation": losses, "generations": examples}
        if self.trainer.is_world_process_zero():
            write_json(kept, before)
        return before

    def _evaluate(self, model: Any, rows: list[EncodedRow], phase: str) -> Any:
        size = self.config.batch_size
        return evaluate(model, rows, size, lambda done, total: self.progress(phase, done, total))

    def _generations(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
        tokens = self.config.generation_tokens
        if not tokens:
            return []
        told: list[Dropped] = []  # when the rows were encoded
        rows = pick_examples(list(islice(self.source.rows("validation", told), 4096)))
        rows = rows or pick_examples(list(islice(self.source.rows("train", told), 4096)))
        asked = [(row, prompt) for row in rows if (prompt := encode_prompt(row, tokenizer)) is not None]
        answers = generate(model, tokenizer, [prompt for _, prompt in asked], tokens)
        return [
            {"language": row.language, "task": row.task, "prompt": _question(row.messages), "before": answer}
            for (row, _), answer in zip(asked, answers, strict=True)
        ]

    def _train(self, model: Any) -> list[dict[str, float]]:
        """Trains from the last whole checkpoint, if there is one, and leaves the adapter in the work folder."""
        checkpoint = last_checkpoint(self.folder.work)
        if checkpoint is not None:
            self.log(f"goes on from {checkpoint.name}")
        self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.trainer.is_world_process_zero():
            model.save_pretrained(str(self.folder.work / "adapter"))
        return [
            {
                "step": line["step"],
                "loss": line["answer"],
                "auxiliary": line["auxiliary"],
                "learning_rate": line["learning_rate"],
                **{key: line[key] for key in ("imbalance", "entropy") if key in line},
            }
            for line in self.trainer.state.log_history
            if "answer" in line
        ]


def _dtype(config: TrainingConfig) -> torch.dtype:
    """Of the frozen base; the adapter itself always trains in float32."""
    if config.precision == "auto":
        gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if gpu else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def _arguments(config: TrainingConfig, work: Path) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_steps=1,  # set once the rows are counted
        seed=config.seed,
        bf16=gpu and _dtype(config) is torch.bfloat16,
        save_strategy="steps",
        save_total_limit=2,
        logging_strategy="steps",
        logging_nan_inf_filter=False,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        **_checkpointing(config),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs: one process each, by `accelerate launch`
    return arguments


def _checkpointing(config: TrainingConfig) -> dict[str, Any]:
    """Under the name that this version of transformers has for it."""
    if not config.gradient_checkpointing:
        return {}
    names = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    # a re-entrant checkpoint would leave the routers' logits without a gradient
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _parameters(model: Any) -> dict[str, Any]:
    counts = asdict(parameter_report(model))
    return {f"{key}_same_rank" if key in ("lora", "moe_lora", "hydra_lora") else key: n for key, n in counts.items()}


def _question(messages: list[dict[str, str]]) -> str:
    """The last user turn before the first answer."""
    first = next(index for index, turn in enumerate(messages) if turn["role"] == "assistant")
    return next((turn["content"] for turn in reversed(messages[:first]) if turn["role"] == "user"), "")
