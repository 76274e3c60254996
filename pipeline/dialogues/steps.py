"""The steps that make dialogues of a language's passages, one for each mode of the recipe."""

from __future__ import annotations

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
from pipeline.dialogues.reverse import ReverseDialogue, reverse_dialogues, with_written_instructions
from pipeline.dialogues.small_teacher import SmallTeacherPrompts
from pipeline.engine.step import Context, Make, Raw, Step
from pipeline.files import Spool, content_hash, file_hash
from pipeline.languages import Language, load_language
from pipeline.recipe import Dialogues, Recipe, Teacher
from pipeline.rows.sample import SAMPLE_SCHEMA, Decision, Dropped, Message, Passage, Sample, passage_from_row, sample_id
from pipeline.teacher import TeacherClient, TeacherError, model_name, shared_teacher
from pipeline.teacher.batch import Refused, in_order
from pipeline.text.identify import BACKEND, other_language

TASK = "chat_specific"
LEDGER_FOLDER = "teachers"


def dialogue_steps(recipe: Recipe, code: str, passages: Step) -> list[Step]:
    """A step for every `[[dialogues.LANGUAGE]]` table; two of one mode are told apart by their number."""
    modes = recipe.dialogues.get(code, ())
    steps = []
    for number, mode in enumerate(modes):
        repeated = [m.mode for m in modes[:number]].count(mode.mode)
        steps.append(_step(recipe, code, passages, mode, f"{mode.mode}-{code}" + (f"-{repeated + 1}" if repeated else "")))
    return steps


def _step(recipe: Recipe, code: str, passages: Step, mode: Dialogues, name: str) -> Step:
    language = load_language(code)
    config: dict[str, Any] = {"mode": asdict(mode), "seed": recipe.seed}
    files: tuple[Path, ...] = ()
    does = Make(functools.partial(_reverse, code=code, count=mode.count, seed=recipe.seed), by_part=False)
    if mode.mode == "reverse":
        config["templates"] = content_hash(asdict(language.reverse))
    if mode.teacher:
        teacher = recipe.teachers[mode.teacher]
        # Not where the teacher is or how it is driven: only what changes its answers makes the step anew.
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
        ask = functools.partial(
            _ask, code=code, mode=mode, teacher=teacher, seed=recipe.seed, languages=recipe.languages, files=files
        )
        does = Make(ask, by_part=False)
    return Step(
        name=name,
        version=3,
        does=does,
        config=config,
        files=files,
        inputs=(passages,),
        schema=SAMPLE_SCHEMA,
        teacher=mode.teacher,
        unit_in="passages",
        unit_out="rows",
    )


@contextmanager
def _in_drawn_order(rows: Iterator[Raw], context: Context, seed: int) -> Iterator[Iterator[Passage]]:
    """The passages by seeded hash, so that a count takes a fair draw of them; they wait on the disk."""
    with Spool[Raw](context.folder / "passages") as spool:
        drawn, places = array("Q"), array("Q")
        for row in rows:
            drawn.append(int(content_hash(seed, row["id"], digits=16), 16))
            places.append(spool.put(row))
        order = np.argsort(np.array(drawn, dtype=np.uint64), kind="stable")
        yield (passage_from_row(spool.get(places[number])) for number in order)


def _reverse(
    rows: Iterator[Raw], context: Context, *, code: str, count: int | None, seed: int
) -> Iterator[tuple[Sample, ...] | Dropped]:
    language, made = load_language(code), 0
    with _in_drawn_order(rows, context, seed) as passages:
        for done, passage in enumerate(passages, 1):
            context.progress(done, context.rows)
            if count is not None and made >= count:
                yield _dropped(passage, "not_needed", f"{count} dialogues were wanted")
                continue
            skipped: Counter[str] = Counter()
            dialogues = list(reverse_dialogues(passage, language, seed, skipped))[: None if count is None else count - made]
            context.counters.update(skipped)
            made += len(dialogues)
            if dialogues:
                yield tuple(_reverse_sample(passage, dialogue, context.name) for dialogue in dialogues)
            else:
                yield _dropped(passage, "no_section_can_answer", _in_words(skipped))


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


def _ask(
    rows: Iterator[Raw],
    context: Context,
    *,
    code: str,
    mode: Dialogues,
    teacher: Teacher,
    seed: int,
    languages: tuple[str, ...],
    files: tuple[Path, ...],
) -> Iterator[tuple[Sample, ...] | Sample | Dropped]:
    language, name, total = load_language(code), mode.teacher or "", context.rows or 0
    tried = min(total, mode.max_passages or total)
    taken: deque[Passage] = deque()
    done = made = 0

    def is_language(text: str) -> bool:
        return other_language(text, code, languages) is None

    def take() -> Iterator[Passage]:
        for passage in itertools.islice(passages, tried):
            taken.append(passage)
            yield passage

    # Another model file of the same name is another teacher.
    which = "".join(f"-{file_hash(path, context.work)[:8]}" for path in files)
    ledger = context.work / LEDGER_FOLDER / f"{name}{which}.sqlite"
    with _in_drawn_order(rows, context, seed) as passages, shared_teacher(name, teacher, ledger, context.stop) as asking:
        outcomes: AsyncIterator[tuple[Passage, Dialogue | list[ReverseDialogue] | Refused]]
        if mode.mode == "reverse":
            outcomes = _instructed_dialogues(
                take(), language, asking.client, seed=seed, count=mode.count or sys.maxsize, is_language=is_language
            )
        else:
            outcomes = grounded_dialogues(
                take(),
                language,
                asking.client,
                seed=seed,
                count=mode.count or tried,
                closed_book=mode.mode == "closed_book",
                is_language=is_language,
                min_grounded=mode.min_grounded,
            )
        for passage, outcome in asking.take(outcomes):
            taken.popleft()
            done += 1
            context.progress(done, tried)
            if isinstance(outcome, Refused):
                context.run_again |= outcome.reason == "teacher_failed"
                yield _dropped(passage, outcome.reason, outcome.detail)
            elif isinstance(outcome, Dialogue):
                made += 1
                yield _grounded_sample(passage, outcome, mode.mode, model_name(teacher), context.name)
            else:
                wanted = outcome[: None if mode.count is None else mode.count - made]
                made += len(wanted)
                yield tuple(_reverse_sample(passage, dialogue, context.name, model_name(teacher)) for dialogue in wanted)
        context.usage = {"teacher": name, **asdict(asking.client.usage)}
        why = f"{made} dialogues made of {mode.count or 'any number'} wanted, at most {mode.max_passages or 'all'} passages to try"
        for passage in itertools.chain(taken, passages):  # taken, and then not needed
            yield _dropped(passage, "not_needed", why)


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
