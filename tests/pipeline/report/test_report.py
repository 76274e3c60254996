"""The report: one page, nothing outside it, every text of a row escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.release import DatasetFolder, open_dataset
from pipeline.report import charts, dataset_report

HOSTILE = "<script>alert(\"1\")</script> & 'quotes' <img src=x onerror=alert(1)> {{ 7 * 7 }} {% raw %} </div></details>"


class Page(HTMLParser):
    """Elements, attributes and text of a page; its tags have to close in order."""

    VOID = frozenset(["meta", "link", "img", "br", "hr", "input"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class Altered(DatasetFolder):
    """A dataset whose rows all say something hostile."""

    def rows(self, config: str, split: str) -> Any:
        for row in super().rows(config, split):
            hostile = [{"role": message["role"], "content": HOSTILE} for message in row["messages"]]
            yield row | {"messages": hostile, "source": row["source"] | {"title": HOSTILE, "name": HOSTILE, "licence": HOSTILE}}


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> DatasetFolder:
    return open_dataset(small_dataset)


@pytest.fixture(scope="module")
def training() -> dict[str, Any]:
    """A training's record, with a text that tries to break out and a stratum that no held-out token is in."""
    before = {"all": (5.0, 40), "fr_chat_specific": (6.0, 20), "fr_math": (4.0, 20), "en_math": (None, 0)}
    return {
        "format": 2,
        "base_model": {"name": "tiny <b>llama</b>"},
        "config": {"generation_tokens": 48},
        "adapter": {"variant": "malora", "num_experts": 2, "top_k": 1, "r": 8},
        "parameters": {"trainable": 1234, "total": 5678, "moe_lora_same_rank": 2345, "lora_rank_of_equal_size": 17.4},
        "loss": [{"step": step, "loss": 6.0 / step, "auxiliary": 0.1, "learning_rate": 1e-3} for step in range(1, 31)],
        "validation": {
            "before": {key: {"loss": loss, "tokens": tokens, "rows": 2} for key, (loss, tokens) in before.items()},
            "after": {key: {"loss": loss and loss - 1, "tokens": tokens, "rows": 2} for key, (loss, tokens) in before.items()},
        },
        "routing": {
            "modules": ["layers.0.q_proj", "layers.1.q_proj"],
            "groups": ["en_math", "fr_math"],
            "share": [[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]],
        },
        "generations": [{"language": "fr", "task": "math", "prompt": HOSTILE, "before": HOSTILE, "after": "4"}],
    }


@pytest.mark.parametrize("trained", [False, True], ids=["without training", "with training"])
def test_the_page_needs_nothing_from_outside(dataset: DatasetFolder, training: dict[str, Any], trained: bool) -> None:
    page = Page(dataset_report(dataset, training if trained else None))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in {"src", "srcset", "href", "action"} or name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    style = next(text for text in page.text if text.lstrip().startswith(":root"))
    assert "url(" not in style and "@import" not in style


def test_texts_of_rows_and_of_the_model_are_escaped(dataset: DatasetFolder, training: dict[str, Any]) -> None:
    page = Page(dataset_report(Altered(dataset.path, dataset.manifest), training))
    assert "script" not in page.tags and "img" not in page.tags
    assert page.text.count(HOSTILE) >= 8  # as text, to the letter: braces are no template either
    assert "49" not in [text.strip() for text in page.text]
    assert "tiny <b>llama</b>" in "".join(page.text)


def test_the_funnel_shows_each_stage_with_what_came_in_what_left_and_why(dataset: DatasetFolder) -> None:
    html = dataset_report(dataset)
    for report in dataset.reports:
        assert f">{report.stage}<" in html
        for reason, count in report.dropped.items():
            assert re.search(rf"{reason}\D{{0,40}}{count}", html), (report.stage, reason)


def test_up_to_three_rows_a_language_and_task_can_be_read(dataset: DatasetFolder) -> None:
    html = dataset_report(dataset)
    for config in dataset.configs:
        rows = list(dataset.rows(config, "train"))
        assert sum(row["id"] in html for row in rows) == min(3, len(rows))


def test_two_reports_of_one_dataset_are_equal(dataset: DatasetFolder, training: dict[str, Any]) -> None:
    assert dataset_report(dataset, training) == dataset_report(open_dataset(dataset.path), training)


def test_the_training_shows_losses_by_language_and_task_and_what_has_none_is_left_out(
    dataset: DatasetFolder, training: dict[str, Any]
) -> None:
    text = " ".join(" ".join(Page(dataset_report(dataset, training)).text).split())
    assert "1,234" in text and "2,345" in text
    assert "fr_chat_specific 2 20 6.000 5.000 −1.000" in text
    assert "en_math 2 0" not in text
    assert not re.search(r"\b(None|nan)\b", text.partition("The adapter")[2].partition("Rows to read")[0])


def test_the_baseline_stands_beside_the_adapter_and_where_there_is_none_it_says_how(
    dataset: DatasetFolder, training: dict[str, Any]
) -> None:
    baseline = {"r": 17, "trainable": 1200, "validation": training["validation"]["before"]}
    text = " ".join(" ".join(Page(dataset_report(dataset, training | {"baseline": baseline})).text).split())
    assert "fr_chat_specific 2 20 6.000 5.000 −1.000 6.000" in text
    assert "rank 17, 1,200 trainable parameters" in text and "No baseline" not in text
    assert "No baseline was trained beside it" in " ".join(Page(dataset_report(dataset, training)).text)


def test_the_heat_map_shows_the_layers_where_languages_differ_most_first(dataset: DatasetFolder, training: dict[str, Any]) -> None:
    html = dataset_report(dataset, training)
    assert html.index("layers.1.q_proj") < html.index("layers.0.q_proj")


@pytest.mark.parametrize("missing", ["loss", "share", "generations", "validation"])
def test_a_training_that_measured_nothing_of_a_kind_still_has_its_page(
    dataset: DatasetFolder, training: dict[str, Any], missing: str
) -> None:
    """One step, one language, no generations, no held-out rows: each may be."""
    less = {
        "loss": training | {"loss": training["loss"][:1]},
        "share": training | {"routing": {"modules": [], "groups": [], "share": []}},
        "generations": training | {"generations": []},
        "validation": training | {"validation": {"before": {"all": None}, "after": {"all": None}}},
    }[missing]
    Page(dataset_report(dataset, less))


def test_a_folder_without_its_timings_has_its_report_too(dataset: DatasetFolder, tmp_path: Path) -> None:
    for name in ("data", "dropped"):
        (tmp_path / name).symlink_to(dataset.path / name)
    Page(dataset_report(replace(dataset, path=tmp_path)))


@given(st.lists(st.floats(0.01, 20), min_size=2, max_size=300))
def test_a_curve_stays_inside_its_box(losses: list[float]) -> None:
    curve = charts.line(range(1, len(losses) + 1), losses)
    for points in (curve.points, curve.smooth):
        for point in points.split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= curve.width and 0 <= y <= curve.height
