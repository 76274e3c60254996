"""Train a MALoRA adapter on any rows with `messages`: no recipe, no build.

    python examples/train_on_messages.py [FOLDER] [BASE_MODEL]

What glotloom asks of a Parquet file is `messages`, and the `language` and `task` that batches are balanced over. For a
dataset of the hub: `datasets.load_dataset(NAME, split="train").add_column("language", …).to_parquet(PATH)`.
"""

import sys
import tempfile
from pathlib import Path

import datasets

from malora import TrainingConfig, train_adapter

QUESTIONS = {
    "en": ("How much is {} and {}?", "{} and {} make {}."),
    "es": ("¿Cuánto suman {} y {}?", "{} y {} suman {}."),
    "fr": ("Combien font {} et {} ?", "{} et {} font {}."),
}

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
base_model = sys.argv[2] if len(sys.argv) > 2 else "smollm2"

rows = [
    {
        "id": f"{language}-{a}-{b}",
        "language": language,
        "task": "math",
        "messages": [
            {"role": "user", "content": question.format(a, b)},
            {"role": "assistant", "content": answer.format(a, b, a + b)},
        ],
    }
    for language, (question, answer) in QUESTIONS.items()
    for a in range(2, 6)
    for b in range(2, 6)
]
held_out = [row for row in rows if row["id"].endswith("-3-4")]
(folder / "data").mkdir(exist_ok=True)
for split, part in (("train", [row for row in rows if row not in held_out]), ("validation", held_out)):
    datasets.Dataset.from_list(part).to_parquet(folder / "data" / f"{split}.parquet")

config = TrainingConfig(base_model=base_model, num_experts=4, top_k=1, max_steps=10, max_tokens=64, generation_tokens=16)
result = train_adapter(config, folder / "data", folder / "adapter")
losses = result.record["validation"]
for key in losses["before"]:
    print(f"{key:<10} loss {losses['before'][key]['loss']:.3f} → {losses['after'][key]['loss']:.3f}")
print(f"{result.out}: {result.record['parameters']['trainable']:,} trained parameters")
