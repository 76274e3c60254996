"""The commands that clean anybody's Parquet files: the stages of a build, each by itself."""

from __future__ import annotations

import math
import os
from pathlib import Path

import click

from flows.cli.plain_errors import plain_errors
from flows.progress import ProgressBar

_WORKERS = click.option(
    "--workers",
    default=len(os.sched_getaffinity(0)),
    show_default="one a core",
    type=click.IntRange(min=1),
    help="How many work at once. The result is the same for any number.",
)


@click.command()
@click.argument("rows", metavar="IN", type=click.Path(path_type=Path))
@click.option("--column", default="text", show_default=True, help="What to compare: a column of texts, or messages.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A Parquet file for the rows that stay.")
@click.option(
    "--against", type=click.Path(path_type=Path), help="Rows released earlier, as IN: what duplicates one of them leaves."
)
@click.option(
    "--threshold", default=0.8, show_default=True, help="Least Jaccard similarity of near-duplicates, more than 0 and at most 1."
)
@click.option(
    "--keep",
    default="longest",
    show_default=True,
    metavar="POLICY",
    help="Which of several duplicates stays: `longest`, `first` by id, or by a column: `highest:COLUMN`, `lowest:COLUMN`.",
)
@click.option("--containment", is_flag=True, help="Stricter: the shorter text's share of shingles in the other counts.")
@_WORKERS
@plain_errors
def dedup(
    rows: Path, column: str, out: Path, against: Path | None, threshold: float, keep: str, containment: bool, workers: int
) -> None:
    """Take the duplicates out of IN, a Parquet file or a folder of them.

    OUT gets the rows that stay, with all their columns, and OUT.dropped.parquet (of rows.parquet: rows.dropped.parquet) id, reason,
    partner_id and score of the rest; both are sorted by id. Without a column `id` rows get one, of their content.

    First what is equal but for Unicode form, case, white space and Chinese script leaves, then near-duplicates: rows that share
    most windows of 5 characters with a row that stays, each compared in full. A chain of small changes does not pull its ends
    together. Rows without a text are equal to each other. OUT is written over if it is there.
    Rows may be of any length and script. The same rows give the same bytes, in whatever order and files they come.

    \b
    Examples:
      glotloom dedup rows.parquet --out clean.parquet
      glotloom dedup folder --column messages --against release-1.parquet --out new.parquet
      glotloom dedup rows.parquet --keep highest:quality --out clean.parquet
    """
    from pipeline.commands.dedup import dedup as run_dedup

    with ProgressBar() as progress:
        done = run_dedup(
            rows,
            column,
            out,
            threshold=threshold,
            against=against,
            keep=keep,
            containment=containment,
            workers=workers,
            progress=progress,
        )
    click.echo(f"{out}: {done.kept:,} of {done.rows_in:,} rows; {done.exact:,} exact and {done.near:,} near-duplicates left")
    if done.not_compared:
        click.echo(
            f"glotloom: warning: of rows that are alike throughout (one template?) {done.not_compared:,} pairs were not compared; "
            "what was compared is right",
            err=True,
        )


@click.command()
@click.argument("rows", metavar="IN", type=click.Path(path_type=Path))
@click.option("--column", default="text", show_default=True, help="What to identify: a column of texts, or messages.")
@click.option("--languages", required=True, metavar="CODES", help="The languages to expect, such as en,zh,ru.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A Parquet file for the rows.")
@click.option("--second-opinion", "second", is_flag=True, help="Add identified_agreed: does py3langid think so too?")
@_WORKERS
@plain_errors
def identify(rows: Path, column: str, languages: str, out: Path, second: bool, workers: int) -> None:
    """Tell the language of each row of IN, a Parquet file or a folder of them.

    OUT gets all rows, sorted by id, with two more columns: identified_language (ISO 639-1, or `undetermined` where a text is too
    short to say) and identified_score (0 to 1). Languages that are not among CODES are found too, on stronger evidence. Code,
    LaTeX and URLs do not count. Forty times as fast with langdetect-rs: pip install 'glotloom[fast]'. Of texts of 15 to 30
    characters one in eight is put into another language, of those of 30 to 60 one in twenty-five: --second-opinion tells which
    to doubt.

    \b
    Example:
      glotloom identify rows.parquet --languages en,zh,ru,fr,es --out identified.parquet
    """
    from pipeline.commands.identify import identify_table

    codes = [code.strip() for code in languages.split(",") if code.strip()]
    with ProgressBar() as progress:
        done = identify_table(rows, column, codes, out, second=second, workers=workers, progress=progress)
    click.echo(f"{out}: {', '.join(f'{language} {count:,}' for language, count in done.languages.items()) or 'no rows'}")
    if done.disagreed is not None:
        click.echo(f"py3langid disagrees on {done.disagreed:,} rows")


@click.command()
@click.argument("rows", metavar="IN", type=click.Path(path_type=Path))
@click.option("--column", default="text", show_default=True, help="What to compare: a column of texts, or messages.")
@click.option(
    "--language-column", help="The column with each row's ISO 639-1 code.  [default: language, or else identified_language]"
)
@click.option("--languages", metavar="CODES", default="", help="Compare only these, such as en,zh,ru.  [default: all of IN]")
@click.option("--out", required=True, metavar="GROUPS", type=click.Path(path_type=Path), help="A Parquet file for the groups.")
@click.option(
    "--precision",
    default=0.97,
    show_default=True,
    help="Share of pairs to be right, by estimate, in each pair of languages. Where no margin gives it, pairs are made if at most "
    "a tenth is estimated wrong, and none if more; the output tells the estimate.",
)
@_WORKERS
@plain_errors
def parallel(
    rows: Path, column: str, language_column: str | None, languages: str, out: Path, precision: float, workers: int
) -> None:
    """Find the rows of IN, a Parquet file or a folder of them, that say the same in different languages.

    GROUPS gets id, group_id and score of every row that has a counterpart, sorted by id. Rows that share a value in a column
    `group_id` of IN belong together from the start. The others are compared by what they mean (pip install
    'glotloom[embeddings]'; in ar de en es fr it ja ko nl pl pt ru th tr zh), and texts whose numbers, URLs or code differ are
    never put together. How near two texts have to be is fitted to IN for each pair of languages.

    Embeddings are kept in ~/.cache/glotloom (GLOTLOOM_CACHE), so that the next run, and one that was killed, has them.

    \b
    Examples:
      glotloom parallel rows.parquet --out groups.parquet
      glotloom parallel DATASET/data --column messages --languages en,fr --out groups.parquet
    """
    from pipeline.commands.parallel import parallel as run_parallel

    codes = [code.strip() for code in languages.split(",") if code.strip()]
    with ProgressBar() as progress:
        done = run_parallel(
            rows,
            column,
            out,
            language_column=language_column,
            languages=codes,
            precision=precision,
            workers=workers,
            progress=progress,
        )
    click.echo(f"{out}: {done.groups:,} groups of {done.grouped:,} rows; {done.alone:,} rows have no counterpart")
    if done.not_compared:
        click.echo(f"{done.not_compared:,} rows were not compared: in other languages, or without a letter")
    for (a, b), count in done.pairs.items():
        fitted = done.thresholds[a, b]
        wrong = "too few to estimate how many are wrong" if fitted.wrong is None else f"{fitted.wrong:.1%} estimated wrong"
        click.echo(f"  {a}-{b}  {count:>7,} pairs   least margin {fitted.margin:.3f}, {wrong}")
    if poor := [f"{a}-{b}" for (a, b), fitted in done.thresholds.items() if math.isinf(fitted.margin)]:
        click.echo(f"glotloom: warning: {', '.join(poor)}: no margin gives the precision asked for, so no pair was made", err=True)


@click.command()
@click.argument("rows", metavar="IN", type=click.Path(path_type=Path))
@click.option("--column", default="text", show_default=True, help="What to check: a column of texts, or messages.")
@click.option(
    "--against",
    required=True,
    multiple=True,
    metavar="EVAL",
    type=click.Path(path_type=Path),
    help="An evaluation set: .parquet, .jsonl (an object a line) or .json (an array of them, or SQuAD's layout), with question, "
    "prompt, instruction, problem, text, query or input (the first of these counts), or .tsv (the first column). May be repeated.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A Parquet file for the rows that stay.")
@click.option("--translations", is_flag=True, help="Find items in other languages than their own too.")
@click.option(
    "--language-column",
    help="With --translations: the column with each row's ISO 639-1 code.  [default: language, or else identified_language, or "
    "else it is identified]",
)
@_WORKERS
@plain_errors
def decontaminate(
    rows: Path, column: str, against: tuple[Path, ...], out: Path, translations: bool, language_column: str | None, workers: int
) -> None:
    """Take out of IN, a Parquet file or a folder of them, what stands in an evaluation set.

    OUT gets the rows that stay, with all their columns, and OUT.dropped.parquet (of rows.parquet: rows.dropped.parquet) id, reason,
    partner_id (file and number of the item) and score of the rest; both are sorted by id.

    A row leaves that has 10 words in a row of an item, or 20 characters of a script without spaces, or the whole of a shorter item.
    An item has to have at least 4 words or 8 characters. With --translations also a row that says in another language what an item
    says, numbers included (pip install 'glotloom[embeddings]'; in ar de en es fr it ja ko nl pl pt ru th tr zh).

    \b
    Examples:
      glotloom decontaminate rows.parquet --against mgsm_en.tsv --out clean.parquet
      glotloom decontaminate rows.parquet --against gsm8k.jsonl --against mgsm_en.tsv --translations --out clean.parquet
    """
    from pipeline.commands.decontaminate import decontaminate as run_decontaminate
    from pipeline.errors import some_of

    with ProgressBar() as progress:
        done = run_decontaminate(
            rows,
            column,
            out,
            against,
            translations=translations,
            language_column=language_column,
            workers=workers,
            progress=progress,
        )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in done.dropped.items())
    click.echo(f"{out}: {done.kept:,} of {done.rows_in:,} rows" + (f"; left: {reasons}" if reasons else "; none left"))
    for name, count in done.by_set.items():
        click.echo(f"  {name}: {count:,} rows")
    checked = done.checked
    for count, what in (
        (checked.items_too_short, "items are too short to be looked for word by word"),
        (checked.items_not_comparable, "items are in languages whose translations cannot be found"),
        (
            checked.rows_not_comparable,
            f"rows were not searched for translations, being in other languages: {some_of(checked.languages_not_comparable)}",
        ),
    ):
        if count:
            click.echo(f"glotloom: warning: {count:,} {what}", err=True)
