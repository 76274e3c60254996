"""Recipes: TOML into frozen dataclasses that refuse unknown keys and nonsense at once.

Paths in a recipe are relative to the recipe's own folder; `sample:NAME` is a file of the sample data that ships with the
package.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.languages import known_languages

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
Address = Annotated[str, Field(pattern=r"^https?://")]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Knowledge:
    """`[knowledge.LANGUAGE]`: where the passages of one language come from; lengths in estimated tokens."""

    kind: Literal["wikipedia-dump", "parquet", "dataset", "jsonl", "text"]
    """A `dataset` is a folder that `datasets` saved, or `hub:ORG/NAME@REVISION:CONFIG`, of which the split `train` is streamed."""
    path: str
    max_documents: Count | None = None
    min_tokens: Count = 1000
    max_tokens: Count = 10_000
    segment_tokens: Count = 2000
    tokenizer: str = ""
    """A `tokenizer.json`, or a folder with one: its counts instead of estimates."""
    keywords: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Documents with none of these in title or text leave."""
    without_keywords: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Documents with one of these in title or text leave."""
    categories: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Of a Wikipedia dump: pages that stand in none of these, nor in a category at most `category_depth` steps below, leave."""
    category_depth: Annotated[int, Field(ge=0)] = 3
    simplified: bool = True
    """Chinese only: traditional characters to simplified ones."""
    source: str = ""
    """What the source is called in the lineage; a dump's own site name unless given."""
    licence: str = "CC BY-SA 4.0"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Dialogues:
    """One `[[dialogues.LANGUAGE]]`: a way to make dialogues of the passages of that language."""

    mode: Literal["reverse", "grounded", "closed_book"]
    teacher: str | None = None
    """Of `reverse` it writes the instructions, which come from templates otherwise."""
    count: Count | None = None
    """Dialogues wanted; every passage is used when absent."""
    max_passages: Count | None = None
    """Passages tried at the most, however few dialogues they give; no limit when absent."""
    min_grounded: Share = 0.7
    """Of an answer's rare words so many have to be in the passage; names and numbers all have to."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Teacher:
    """`[teachers.NAME]`: a model that asks and answers. The key itself never stands in a recipe."""

    kind: Literal["openai", "local"]
    base_url: Address | tuple[Address, ...] | None = None
    """One address, or several that serve the same model."""
    model: str = ""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """The name of an environment variable."""
    max_concurrency: Count = 16
    """Requests under way at once, over all addresses; fewer where the servers refuse more than a few."""
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Of prompts and answers."""
    prompt_price: Annotated[float, Field(ge=0)] = 0.0
    """Of a million tokens, as `completion_price`, in whatever currency."""
    completion_price: Annotated[float, Field(ge=0)] = 0.0
    budget: Annotated[float, Field(gt=0)] | None = None
    """What all answers of this teacher in one work folder may cost; what is under way when it is spent comes on top."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Count = 512

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The addresses, each once."""
        urls = (self.base_url,) if isinstance(self.base_url, str) else self.base_url or ()
        return tuple(dict.fromkeys(url.rstrip("/") for url in urls))


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Agnostic:
    """`[agnostic.TASK]`: a pool of language-agnostic rows and what of it to keep per language."""

    path: str
    budget: dict[str, Annotated[int, Field(ge=0)] | Literal["all"]]
    """Rows to keep per language; a language that is not named keeps none."""
    screen: bool = True
    """Leave translations of culture-bound English rows out."""
    source: str = ""
    licence: str = "unknown"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Clean:
    """`[clean]`: what rows have to be to stay."""

    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    evaluation_sets: tuple[str, ...] = ()
    evaluation_translations: bool = False
    """Leave translations of the sets' items out as well."""
    parallel_groups: bool = False
    """Put rows that say the same in different languages in one group, whatever they come from, so that no split parts them."""
    min_answer_characters: Count = 10
    rules: tuple[Annotated[str, Field(pattern=r"^.+\.py:[A-Za-z_]\w*$")], ...] = ()
    """Rules of one's own, `FILE.py:FUNCTION`, asked after the built-in ones; the file is run, so it has to be trusted."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """`[training]`: passed on to `malora.TrainingConfig`, whose defaults hold for whatever is absent."""

    base_model: str | None = None
    target_modules: str | tuple[str, ...] | None = None
    r: Count | None = None
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    use_rslora: bool | None = None
    variant: Literal["malora", "moe_lora", "hydra", "lora"] | None = None
    num_experts: Count | None = None
    top_k: Count | None = None
    expert_rank: Count | None = None
    shared_rank: Count | None = None
    shared_router: bool | None = None
    freeze_shared: bool | None = None
    router_aux_loss_coef: Annotated[float, Field(ge=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    warmup_ratio: Share | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    max_grad_norm: Annotated[float, Field(ge=0)] | None = None
    max_steps: Count | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Count | None = None
    gradient_accumulation: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    eval_rows_per_stratum: Count | None = None
    save_steps: Count | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    gradient_checkpointing: bool | None = None
    generation_tokens: Annotated[int, Field(ge=0)] | None = None
    baseline: bool | None = None

    def given(self) -> dict[str, Any]:
        """The keys that the recipe sets, as keyword arguments."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Recipe:
    """Everything that decides a dataset's bytes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)] = 7
    knowledge: dict[str, Knowledge] = Field(default_factory=dict)
    dialogues: dict[str, tuple[Dialogues, ...]] = Field(default_factory=dict)
    teachers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Teacher] = Field(default_factory=dict)
    agnostic: dict[Literal["chat_agnostic", "math", "code"], Agnostic] = Field(default_factory=dict)
    clean: Clean = Clean()
    training: Training = Training()
    folder: Annotated[Path, Field(exclude=True)] = Path()
    """Where the recipe stands; relative paths start here."""

    def path(self, text: str) -> Path:
        """A path of the recipe as a path of this machine."""
        if text.startswith("sample:"):
            return Path(str(resources.files("pipeline"))) / "samples" / text.removeprefix("sample:")
        return Path(text) if text.startswith("hub:") else self.folder / Path(text).expanduser()


_RECIPE = TypeAdapter(Recipe)


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `KEY=VALUE` overrides (`teachers.main.base_url=http://…`); InputError names file and key."""
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(table, override)
    return parse_recipe(table, name=str(path), folder=path.parent)


def parse_recipe(table: Mapping[str, Any], *, name: str = "recipe", folder: Path = Path()) -> Recipe:
    """A recipe out of plain tables and values; `name` stands in its errors."""
    if "folder" in table:
        raise InputError(f"{name}: folder: unknown key")
    try:
        # As JSON: there a strict dataclass takes a table and a tuple an array, and nothing else is coerced.
        recipe = _RECIPE.validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        raise InputError("; ".join(dict.fromkeys(f"{name}: {_explain(e)}" for e in error.errors()[:3]))) from error
    recipe = replace(recipe, folder=folder)
    for problem in _contradictions(recipe):
        raise InputError(f"{name}: {problem}")
    return recipe


_DRIVING = (
    "base_url",
    "api_key_env",
    "max_concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "prompt_price",
    "completion_price",
    "budget",
    "timeout_s",
)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it goes into the manifest: every key that decides rows, defaults included, and nothing of this machine.

    Of paths the last name stays; where a teacher is and how it is driven is left out.
    """
    table: dict[str, Any] = _RECIPE.dump_python(recipe, mode="json", exclude={"folder"})
    for source in (*table["knowledge"].values(), *table["agnostic"].values()):
        source["path"] = _last_name(source["path"])
    for source in table["knowledge"].values():
        source["tokenizer"] = _last_name(source["tokenizer"])
    for teacher in table["teachers"].values():
        teacher["model"] = _last_name(teacher["model"]) if teacher["kind"] == "local" else teacher["model"]
        for key in _DRIVING:
            del teacher[key]
    table["clean"] |= {key: [_last_name(path) for path in table["clean"][key]] for key in ("evaluation_sets", "rules")}
    table["training"] = {k: list(v) if isinstance(v, tuple) else v for k, v in recipe.training.given().items()}
    if Path(table["training"].get("base_model", "")).is_absolute():
        table["training"]["base_model"] = _last_name(table["training"]["base_model"])
    return table


def _last_name(path: str) -> str:
    return path if path.startswith(("sample:", "hub:")) else Path(path).name


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: expected KEY=VALUE, such as teachers.main.max_concurrency=8")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for depth, parent in enumerate(parents, 1):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {'.'.join(parents[:depth])} is a list or a value, not a table")
    table[last] = value


_MODELS: Mapping[str, type] = {
    "knowledge": Knowledge,
    "dialogues": Dialogues,
    "teachers": Teacher,
    "agnostic": Agnostic,
    "clean": Clean,
    "training": Training,
}


def _explain(error: Any) -> str:
    location = [part for part in error["loc"] if not str(part).startswith(("function-", "literal["))]
    key = ".".join(str(part) for part in location) or "recipe"
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        model = _MODELS.get(str(location[0]), Recipe) if len(location) > 1 else Recipe
        known = sorted(field.name for field in fields(model) if field.name != "folder")
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}")
    if error["type"] in {"missing", "missing_argument"}:
        return f"{key}: is missing"
    message = error["msg"].replace("Input should", "should")
    if location[-1] == "constrained-str" or str(location[-1]).startswith("tuple["):  # a branch of a union
        return (
            f"{key.rpartition('.' + str(location[-1]))[0]} = {error['input']!r}: should be an address, http://…, or a list of them"
        )
    if location[-1] == "api_key_env":  # it may be the key itself, which is never shown
        return f"{key}: should be the name of an environment variable, never the key itself"
    return f"{key} = {error['input']!r}: {message}"


def _contradictions(recipe: Recipe) -> Iterable[str]:
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
