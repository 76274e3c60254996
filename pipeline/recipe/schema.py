"""What a recipe may say: frozen dataclasses that refuse unknown keys and nonsense at once; the one home of every key."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

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
class Engine:
    """`[engine]`: how the work is cut; it changes no byte of the published Parquet files."""

    part_rows: Count = 20_000
    """Rows of a part: what is done at once by one worker, held in memory, and lost by a kill."""


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
    training: dict[str, Any] = Field(default_factory=dict)
    """`[training]`: the settings of `malora.TrainingConfig`, where their names, types and defaults stand."""
    engine: Engine = Engine()
    folder: Annotated[Path, Field(exclude=True)] = Path()
    """Where the recipe stands; relative paths start here."""

    def path(self, text: str) -> Path:
        """A path of the recipe as a path of this machine."""
        if text.startswith("sample:"):
            return Path(str(resources.files("pipeline"))) / "samples" / text.removeprefix("sample:")
        return Path(text) if text.startswith("hub:") else self.folder / Path(text).expanduser()
