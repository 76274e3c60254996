"""Writes data_cards/ultralink_mini.md: the card of the dataset that the demo builds.

Builds it in demo/dataset, where `make demo` does, so what is finished there is used. The part that the embedded teacher decides
can differ between machines; the test leaves that part out of the comparison.
"""

from __future__ import annotations

from pathlib import Path

from flows.demo import RECIPE
from flows.progress import ProgressBar
from flows.recipes import find_recipe
from pipeline import build

ROOT = Path(__file__).parents[1]
CARD = ROOT / "data_cards" / f"{RECIPE}.md"


def main() -> None:
    """Build, and copy the card."""
    with ProgressBar() as progress:
        dataset = build(find_recipe(RECIPE), ROOT / "demo" / "dataset", progress=progress)
    CARD.parent.mkdir(exist_ok=True)
    CARD.write_bytes((dataset.path / "README.md").read_bytes())


if __name__ == "__main__":
    main()
