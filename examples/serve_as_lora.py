"""Serve a MALoRA adapter with programs that only know LoRA: one plain LoRA for each language, from one adapter.

    python examples/train_on_messages.py FOLDER
    python examples/serve_as_lora.py FOLDER

A LoRA has no router, so the experts get fixed gates: the means of the router's own over the answers in one language. What
that costs is measured on rows that the means have not seen.
"""

import sys
from pathlib import Path

from malora import answer_batches, export_lora, gate_rows, load_adapter, mean_gates, routing_gap

folder = Path(sys.argv[1])
model, tokenizer = load_adapter(folder / "adapter")

modules = []
for language in ("en", "es", "fr"):
    rows = gate_rows(folder / "data", tokenizer, language=language)
    gates = mean_gates(model, answer_batches(rows.gates))
    gap = routing_gap(model, answer_batches(rows.held_out), gates)
    lora = export_lora(model, folder / f"lora-{language}", gates)
    modules.append(f"{language}={folder / f'lora-{language}'}")
    print(f"{language}: {gap}")

# From here on nothing of malora is needed: `PeftModel.from_pretrained(base, folder)` of stock PEFT loads each of them, and
base = lora.base_model_name_or_path
print(f"vllm serve {base} --enable-lora --max-lora-rank {max(8, lora.r)} --lora-modules {' '.join(modules)}")
