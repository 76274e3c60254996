"""What contradicts itself in a recipe whose keys are all right."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.languages import known_languages
from pipeline.recipe.schema import Dialogues, Recipe


def contradictions(recipe: Recipe) -> Iterable[str]:
    """Each in a line that begins with its key."""
    for code in recipe.languages:
        if code not in known_languages():
            yield f"languages: {code!r} is not known; there are {', '.join(known_languages())}"
    if len(set(recipe.languages)) != len(recipe.languages):
        yield f"languages = {list(recipe.languages)!r}: a language stands there twice"
    if not recipe.knowledge and not recipe.agnostic:
        yield "there is no source: add a [knowledge.LANGUAGE] or an [agnostic.TASK] table"
    for code, knowledge in recipe.knowledge.items():
        if code not in recipe.languages:
            yield f"knowledge.{code}: {code!r} is not among languages"
        if knowledge.path.startswith("hub:") and knowledge.kind != "dataset":
            yield f"knowledge.{code}.path = {knowledge.path!r}: only kind = 'dataset' reads from the hub"
        if knowledge.categories and knowledge.kind != "wikipedia-dump":
            yield f"knowledge.{code}.categories: only a wikipedia-dump has them, not kind = {knowledge.kind!r}"
        if knowledge.min_tokens > knowledge.max_tokens:
            yield f"knowledge.{code}.min_tokens = {knowledge.min_tokens}: is more than max_tokens = {knowledge.max_tokens}"
        if not recipe.dialogues.get(code):
            yield f"knowledge.{code}: nothing is made of it; add [[dialogues.{code}]]"
    for code, modes in recipe.dialogues.items():
        if code not in recipe.knowledge:
            yield f"dialogues.{code}: there is no [knowledge.{code}] to make them of"
        for mode in modes:
            yield from _teacher_problems(recipe, f"dialogues.{code}", mode)
    for name, teacher in recipe.teachers.items():
        if teacher.kind == "openai" and not (teacher.base_url and teacher.model):
            yield f"teachers.{name}: an openai teacher needs base_url and model"
        if len(teacher.base_urls) > teacher.max_concurrency:
            yield f"teachers.{name}.max_concurrency = {teacher.max_concurrency}: is less than one for each address"
        if teacher.budget is not None and not (teacher.prompt_price or teacher.completion_price):
            yield f"teachers.{name}.budget: needs prompt_price and completion_price, of a million tokens"
    for task, pool in recipe.agnostic.items():
        for code in pool.budget:
            if code not in recipe.languages:
                yield f"agnostic.{task}.budget.{code}: {code!r} is not among languages"


def _teacher_problems(recipe: Recipe, key: str, mode: Dialogues) -> Iterable[str]:
    if mode.mode == "reverse" and mode.min_grounded != Dialogues.min_grounded:
        yield f"{key}.min_grounded: has no effect with mode 'reverse', whose answers are the passages themselves"
    if mode.teacher is None:
        if mode.mode != "reverse":
            yield f"{key}: mode {mode.mode!r} needs a teacher"
    elif mode.teacher not in recipe.teachers:
        yield f"{key}.teacher = {mode.teacher!r}: there is no [teachers.{mode.teacher}]"
    elif mode.mode == "reverse" and recipe.teachers[mode.teacher].kind == "local":
        yield f"{key}.teacher = {mode.teacher!r}: the embedded one cannot write instructions; leave it out to have templates"
