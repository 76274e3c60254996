"""The stages that make dialogues of a language's passages, one for each mode of the recipe."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
from array import array
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dialogues.gates import IsLanguage, passage_fault
from pipeline.dialogues.grounded import Dialogue, grounded_dialogues
from pipeline.dialogues.in_order import Refused, in_order
from pipeline.dialogues.reverse import ReverseDialogue, reverse_dialogues, with_written_instructions
from pipeline.dialogues.small_teacher import SmallTeacherPrompts
from pipeline.engine.step import Stage, StageRun, row_count, rows_of
from pipeline.files import Spool, file_hash
from pipeline.languages import Language, load_language
from pipeline.recipe import Dialogues, Recipe
from pipeline.rows.sample import (
    SAMPLE_SCHEMA,
    Decision,
    Dropped,
    Message,
    Passage,
    Sample,
    content_hash,
    passage_from_row,
    sample_id,
)
from pipeline.teacher import TeacherClient, TeacherError, model_name, open_teacher
from pipeline.text.identify import BACKEND, other_language

TASK = "chat_specific"
LEDGER_FOLDER = "teachers"


def dialogue_stages(recipe: Recipe, code: str, passages: Stage) -> list[Stage]:
    """A stage for every `[[dialogues.LANGUAGE]]` table; two of one mode are told apart by their number."""
    modes = recipe.dialogues.get(code, ())
    stages = []
    for number, mode in enumerate(modes):
        repeated = [m.mode for m in modes[:number]].count(mode.mode)
        stages.append(_stage(recipe, code, passages, mode, f"{mode.mode}-{code}" + (f"-{repeated + 1}" if repeated else "")))
    return stages


def _stage(recipe: Recipe, code: str, passages: Stage, mode: Dialogues, name: str) -> Stage:
    language = load_language(code)
    config: dict[str, Any] = {"mode": asdict(mode), "seed": recipe.seed}
    files: tuple[Path, ...] = ()
    run = functools.partial(_reverse, code=code, count=mode.count, seed=recipe.seed)
    if mode.mode == "reverse":
        config["templates"] = content_hash(asdict(language.reverse))
    if mode.teacher:
        teacher = recipe.teachers[mode.teacher or ""]
        # Not where the teacher is or how it is driven: only what changes its answers makes the stage anew.
        config["teacher"] = {
            "kind": teacher.kind,
            "model": model_name(teacher),
            "temperature": teacher.temperature,
            "max_tokens": teacher.max_tokens,
        }
        if teacher.kind == "local" and Path(teacher.model).suffix == ".gguf":
            files = (Path(teacher.model),)
        own_prompts = SmallTeacherPrompts.version if teacher.kind == "local" else ""
        config["prompts"] = content_hash(asdict(language.grounded), asdict(language.rules), own_prompts)
        config |= {"languages": recipe.languages, "identifier": BACKEND}
        run = functools.partial(_ask, code=code, mode=mode, recipe=recipe)
    return Stage(
        name=name,
        version=3,
        run=run,
        config=config,
        files=files,
        inputs=(passages,),
        schema=SAMPLE_SCHEMA,
        unit_in="passages",
        unit_out="rows",
    )


@contextmanager
def _in_drawn_order(run: StageRun, seed: int) -> Iterator[Iterator[Passage]]:
    """The passages by seeded hash, so that a count takes a fair draw of them; they wait on the disk."""
    with Spool[dict[str, Any]](run.folder / "passages") as spool:
        drawn, places = array("Q"), array("Q")
        for row in rows_of(run.inputs[0]):
            drawn.append(int(content_hash(seed, row["id"], digits=16), 16))
            places.append(spool.put(row))
        order = np.argsort(np.array(drawn, dtype=np.uint64), kind="stable")
        yield (passage_from_row(spool.get(places[number])) for number in order)


def _reverse(run: StageRun, *, code: str, count: int | None, seed: int) -> None:
    language = load_language(code)
    total, made = row_count(run.inputs[0]), 0
    with _in_drawn_order(run, seed) as passages:
        for done, passage in enumerate(passages, 1):
            run.progress(run.stage.name, done, total)
            if count is not None and made >= count:
                run.drop(_dropped(passage, "not_needed", f"{count} dialogues were wanted"))
            else:
                made += _reverse_of(passage, run, language, seed, None if count is None else count - made)


def _reverse_of(passage: Passage, run: StageRun, language: Language, seed: int, most: int | None) -> int:
    """How many dialogues the passage gave."""
    left_out: Counter[str] = Counter()
    dialogues = list(reverse_dialogues(passage, language, seed, left_out))[:most]
    run.counters.update(left_out)
    if dialogues:
        run.keep(*(_reverse_sample(passage, dialogue, run.stage.name) for dialogue in dialogues))
    else:
        run.drop(_dropped(passage, "no_section_can_answer", _in_words(left_out)))
    return len(dialogues)


def _in_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(left_out.items()))


def _reverse_sample(passage: Passage, dialogue: ReverseDialogue, stage: str, teacher: str = "") -> Sample:
    headings = ", ".join(heading or "(lead)" for heading in dialogue.headings)
    lineage = {"teacher": teacher, "prompt_version": dialogue.prompt_version, "request_keys": dialogue.request_keys}
    return _sample(
        passage,
        dialogue.messages,
        "reverse",
        decisions=tuple(Decision(stage, text) for text in (f"the answers are the sections {headings}", *dialogue.decisions)),
        **(lineage if teacher else {}),
    )


def _instructed_dialogues(
    passages: Iterable[Passage],
    language: Language,
    client: TeacherClient,
    *,
    seed: int,
    count: int,
    is_language: IsLanguage,
) -> AsyncIterator[tuple[Passage, list[ReverseDialogue] | Refused]]:
    """Reverse dialogues of which a teacher writes the instructions."""

    async def write(passage: Passage) -> list[ReverseDialogue] | Refused:
        left_out: Counter[str] = Counter()
        dialogues = list(reverse_dialogues(passage, language, seed, left_out))
        if not dialogues:
            return Refused(reason="no_section_can_answer", detail=_in_words(left_out))
        if reason := passage_fault(passage.title, language) or passage_fault(passage.text, language):
            return Refused(reason=reason)
        try:
            return [await with_written_instructions(d, passage, language, client, is_language) for d in dialogues]
        except TeacherError as error:
            return Refused(reason="teacher_failed", detail=str(error), fault=error.status)

    return in_order(
        passages, write, slots=client.max_concurrency, count=count, worth=lambda o: 0 if isinstance(o, Refused) else len(o)
    )


def _ask(run: StageRun, *, code: str, mode: Dialogues, recipe: Recipe) -> None:
    name, language = mode.teacher or "", load_language(code)
    teacher = recipe.teachers[name]
    total = row_count(run.inputs[0])
    tried = min(total, mode.max_passages or total)
    done = made = 0

    def is_language(text: str) -> bool:
        return other_language(text, code, recipe.languages) is None

    async def drive(passages: Iterator[Passage]) -> list[Passage]:
        """The passages that were taken and then not needed."""
        nonlocal done, made
        # Another model file of the same name is another teacher.
        which = "".join(f"-{file_hash(path, run.work)[:8]}" for path in run.stage.files)
        ledger = run.work / LEDGER_FOLDER / f"{name}{which}.sqlite"
        ledger.parent.mkdir(parents=True, exist_ok=True)
        taken: deque[Passage] = deque()

        def take() -> Iterator[Passage]:
            for passage in itertools.islice(passages, tried):
                taken.append(passage)
                yield passage

        async with open_teacher(name, teacher, ledger) as client:
            outcomes: AsyncIterator[tuple[Passage, Dialogue | list[ReverseDialogue] | Refused]]
            if mode.mode == "reverse":
                outcomes = _instructed_dialogues(
                    take(), language, client, seed=recipe.seed, count=mode.count or sys.maxsize, is_language=is_language
                )
            else:
                outcomes = grounded_dialogues(
                    take(),
                    language,
                    client,
                    seed=recipe.seed,
                    count=mode.count or tried,
                    closed_book=mode.mode == "closed_book",
                    is_language=is_language,
                    min_grounded=mode.min_grounded,
                )
            async for passage, outcome in outcomes:
                taken.popleft()
                done += 1
                run.progress(run.stage.name, done, tried)
                if isinstance(outcome, Refused):
                    run.drop(_dropped(passage, outcome.reason, outcome.detail))
                    run.run_again |= outcome.reason == "teacher_failed"
                elif isinstance(outcome, Dialogue):
                    run.keep(_grounded_sample(passage, outcome, mode.mode, model_name(teacher), run.stage.name))
                    made += 1
                else:
                    wanted = outcome[: None if mode.count is None else mode.count - made]
                    run.keep(*(_reverse_sample(passage, dialogue, run.stage.name, model_name(teacher)) for dialogue in wanted))
                    made += len(wanted)
            run.usage = {"teacher": name, **asdict(client.usage)}
        return list(taken)

    with _in_drawn_order(run, recipe.seed) as passages:
        left = asyncio.run(drive(passages))
        why = f"{made} dialogues made of {mode.count or 'any number'} wanted, at most {mode.max_passages or 'all'} passages to try"
        for passage in itertools.chain(left, passages):
            run.drop(_dropped(passage, "not_needed", why))


def _grounded_sample(passage: Passage, dialogue: Dialogue, mode: str, teacher: str, stage: str) -> Sample:
    return _sample(
        passage,
        dialogue.messages,
        mode,
        teacher=teacher,
        prompt_version=dialogue.prompt_version,
        request_keys=dialogue.request_keys,
        decisions=tuple(Decision(stage, text) for text in dialogue.decisions),
    )


def _sample(passage: Passage, messages: tuple[Message, ...], mode: str, **lineage: Any) -> Sample:
    return Sample(
        id=sample_id(passage.language, TASK, messages, [passage.id]),
        language=passage.language,
        task=TASK,
        messages=messages,
        mode=mode,
        group_id=passage.document_id,
        source=passage.source,
        parent_ids=(passage.id,),
        **lineage,
    )


def _dropped(passage: Passage, reason: str, detail: str) -> Dropped:
    return Dropped(id=passage.id, reason=reason, language=passage.language, task=TASK, detail=detail, source=passage.source)
