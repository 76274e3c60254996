"""The dataset card: `README.md` with the header that the Hugging Face hub and `datasets.load_dataset` read."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline.languages import load_language
from pipeline.release.folder import SPLITS

_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
_SIZE_NAMES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")
# Names that the hub knows for the licences that sources state; what is not listed is `other`.
_LICENCES = {
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc by-sa 3.0": "cc-by-sa-3.0",
    "cc by 4.0": "cc-by-4.0",
    "cc0 1.0": "cc0-1.0",
    "mit": "mit",
    "apache-2.0": "apache-2.0",
}


def card(manifest: dict[str, Any]) -> str:
    """The whole README of a dataset folder; depends on the manifest alone, so equal builds have equal cards."""
    recipe, configs = manifest["recipe"], manifest["configs"]
    header = yaml.safe_dump(_header(recipe, configs), allow_unicode=True, sort_keys=False, width=120)
    return f"---\n{header}---\n\n" + "\n".join(_body(recipe, configs, manifest["stages"])) + "\n"


def _header(recipe: dict[str, Any], configs: dict[str, Any]) -> dict[str, Any]:
    rows = sum(config[split]["rows"] for config in configs.values() for split in SPLITS)
    files = [{"config_name": "default", "default": True, "data_files": _data_files("*", configs.values())}]
    files += [{"config_name": name, "data_files": _data_files(name, [config])} for name, config in sorted(configs.items())]
    licences = sorted({_LICENCES.get(licence.lower(), "other") for _, licence in _sources(recipe)})
    return {
        "pretty_name": recipe["name"],
        "language": sorted(recipe["languages"]),
        "license": licences[0] if len(licences) == 1 else licences,
        "task_categories": ["text-generation"],
        "tags": ["conversational", "multilingual", "instruction-tuning", "glotloom"],
        "size_categories": [_SIZE_NAMES[sum(rows >= bound for bound in _SIZES)]],
        "configs": files,
    }


def _data_files(name: str, configs: Any) -> list[dict[str, str]]:
    configs = list(configs)
    return [
        {"split": split, "path": f"data/{name}/{split}-*.parquet"}
        for split in SPLITS
        if any(config[split]["rows"] for config in configs)
    ]


def _sources(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    tables = [*recipe["knowledge"].values(), *recipe["agnostic"].values()]
    return sorted({(_file_name(table["path"]), table["licence"]) for table in tables})


def _file_name(path: str) -> str:
    return re.split(r"[/\\:]", path)[-1]


def _body(recipe: dict[str, Any], configs: dict[str, Any], stages: list[dict[str, Any]]) -> list[str]:
    languages = ", ".join(load_language(code).english_name for code in recipe["languages"])
    total = {split: sum(config[split]["rows"] for config in configs.values()) for split in SPLITS}
    return [
        f"# {recipe['name']}",
        "",
        f"A multilingual fine-tuning dataset in {languages}, built by glotloom: {total['train']} rows to train on and",
        f"{total['validation']} held out. Rows of one document, or of one set of translations, are all on one side.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'load_dataset("path/to/this/folder")  # everything',
        f'load_dataset("path/to/this/folder", "{sorted(configs)[0]}")',
        "```",
        "",
        "## Rows",
        "",
        "| config | train | validation | estimated tokens |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {c['train']['rows']} | {c['validation']['rows']} | {c['train']['tokens'] + c['validation']['tokens']} |"
            for name, c in sorted(configs.items())
        ),
        "",
        "`messages` is what chat templates read. The other columns are the row's lineage: `source` (name, title, revision,",
        "URL, licence) and `parent_ids` say what it was made of, `mode`, `teacher`, `prompt_version` and `request_keys` how,",
        "`decisions` what the stages noted, `group_id` what it must not be separated from.",
        "",
        "## Sources and licences",
        "",
        "| source | licence |",
        "| --- | --- |",
        *(f"| {name} | {licence} |" for name, licence in _sources(recipe)),
        "",
        "Text that comes from a wiki carries its page's title, revision and address in `source`: name them when you pass it on.",
        "",
        "## What left, and why",
        "",
        "`dropped/` holds what left with `stage` and `reason`, and `partner_id` where it lost to another row. Things too many",
        "to list (redirects, pages not sampled) are only counted.",
        "",
        "| stage | in | out | left |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {s['stage']} | {s['rows_in']} {s['unit_in']} | {s['rows_out']} {s['unit_out']} | "
            f"{', '.join(f'{reason} {n}' for reason, n in s['dropped'].items()) or '–'} |"
            for s in stages
        ),
        "",
        _evaluation_sets(recipe),
    ]


def _evaluation_sets(recipe: dict[str, Any]) -> str:
    sets = [_file_name(path) for path in recipe["clean"]["evaluation_sets"]]
    if not sets:
        return "No evaluation set was checked for contamination."
    return f"Checked for contamination against {', '.join(sets)}."
