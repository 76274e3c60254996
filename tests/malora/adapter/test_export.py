"""The exported LoRA: equal to the model with fixed gates, loaded by stock PEFT, of the form that vLLM takes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from flows.cli.train import SERVED_RANKS
from malora import InputError, MaloraConfig, answer_batches, export_lora, gate_rows, mean_gates, routing_gap
from malora.adapter.core import gate

IDS = torch.tensor([[5, 9, 33, 7, 12, 200], [7, 7, 101, 3, 4, 11]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
VARIANTS = {
    "malora": {"num_experts": 4, "expert_rank": 3, "shared_rank": 5},
    "malora-shared-router": {"num_experts": 3, "shared_router": True, "use_rslora": True},
    "malora-one-of-many": {"num_experts": 4, "top_k": 1},
    "hydra": {"variant": "hydra", "num_experts": 3},
    "moe_lora": {"variant": "moe_lora", "num_experts": 3, "lora_alpha": 5},
    "lora": {"variant": "lora"},
}
RANK = {"malora": 5, "hydra": 2, "moe_lora": 6, "lora": 2}
Q0 = "model.layers.0.self_attn.q_proj"


def config(**changes) -> MaloraConfig:
    settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 2, "init_weights": False}
    return MaloraConfig(**{**settings, **changes})


def logits(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def random_gates(model, seed: int = 0) -> dict[str, list[float]]:
    draw = torch.Generator().manual_seed(seed)
    layers = model.base_model.adapted_layers()
    return {name: torch.rand(layer.configs["default"].num_experts, generator=draw).tolist() for name, layer in layers.items()}


class Stack(nn.Module):
    """Linear layers in a plain module; two names are endings of others."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.up = nn.Linear(6, 7, dtype=dtype)
        self.down = nn.Linear(7, 6, bias=False, dtype=dtype)
        self.inner = nn.ModuleDict({"up": nn.Linear(6, 6, dtype=dtype), "down": nn.Linear(6, 6, dtype=dtype)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["down"](self.inner["up"](self.down(torch.tanh(self.up(x)))))


# What is exported


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("gates", ["uniform", "random", "one-hot", "some"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_export_equals_the_model_with_fixed_gates(variant, gates, dtype, tolerance, tmp_path):
    model = get_peft_model(Stack(dtype), config(task_type=None, **VARIANTS[variant])).to(dtype)
    given = {
        "uniform": None,
        "random": random_gates(model),
        "one-hot": {name: [0.0] * (len(g) - 1) + [1.0] for name, g in random_gates(model).items()},
        "some": {"inner.up": random_gates(model)["inner.up"]},
    }[gates]
    export_lora(model, tmp_path / "lora", given)
    lora = PeftModel.from_pretrained(Stack(dtype), tmp_path / "lora")
    assert lora.peft_config["default"].peft_type == "LORA"
    with torch.no_grad():
        for shape in [(6,), (1, 6), (3, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6)]:
            x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
            with model.base_model.fixed_gates(given or {}):
                expected = model(x)
            largest = (
                float(expected.abs().max()) if expected.numel() else 1.0
            )  # sums of numbers of this size round to its last bits
            torch.testing.assert_close(lora(x), expected, rtol=tolerance, atol=tolerance * max(1.0, largest))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_factors_are_those_of_a_sum_over_the_experts(variant, llama, tmp_path):
    model = get_peft_model(llama, config(**VARIANTS[variant]))
    gates = random_gates(model)
    written = export_lora(model, tmp_path / "lora", gates)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    layers = model.base_model.adapted_layers()
    assert len(tensors) == 2 * len(layers)
    for name, layer in layers.items():
        settings, A, B = layer.configs["default"], layer.malora_A["default"], layer.malora_B["default"]
        update = torch.zeros(layer.out_features, layer.in_features)
        for t in range(settings.num_experts):
            down = A[2 * t : 2 * t + 2] if settings.variant == "moe_lora" else A
            if settings.variant == "malora":
                down = layer.malora_P["default"][t] @ A
            update += settings.scaling * gates[name][t] * B[t] @ down
        rank = RANK[settings.variant] if settings.shared_rank == 5 or settings.variant != "malora" else 2
        assert tensors[f"base_model.model.{name}.lora_A.weight"].shape == (rank, layer.in_features)
        product = tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"]
        torch.testing.assert_close(product, update.detach(), rtol=1e-5, atol=1e-6)
        assert written.r == written.lora_alpha == rank


def test_where_the_router_always_chooses_alike_the_export_is_the_routed_model(llama, make_llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=3, top_k=2, target_modules=["down_proj"]))
    for layer in model.base_model.adapted_layers().values():  # of equal logits the first two
        layer.malora_router["default"].data.zero_()
        layer.malora_B["default"].data[2] = layer.malora_B["default"].data[0]
        layer.malora_P["default"].data[2] = layer.malora_P["default"].data[0]
    export_lora(model, tmp_path / "a", {name: [0.5, 0.5, 0] for name in model.base_model.adapted_layers()})
    export_lora(model, tmp_path / "b", {name: [0, 0.5, 0.5] for name in model.base_model.adapted_layers()})
    for folder in ("a", "b"):
        lora = PeftModel.from_pretrained(make_llama(), tmp_path / folder)
        torch.testing.assert_close(logits(lora), logits(model), rtol=0, atol=1e-5)


def test_the_export_can_be_merged_where_the_adapter_cannot(llama, make_llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=4)).eval()
    export_lora(model, tmp_path / "lora")
    with model.base_model.fixed_gates({}):
        expected = logits(model)
    merged = PeftModel.from_pretrained(make_llama(), tmp_path / "lora").merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_was(llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=4)).train()
    model.base_model.model.lm_head.eval()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    saved, before = model.peft_config["default"].to_dict(), logits(model)
    export_lora(model, tmp_path / "lora", random_gates(model))
    mean_gates(model, [{"input_ids": IDS, "attention_mask": MASK}])
    routing_gap(model, [{"input_ids": IDS, "attention_mask": MASK}])
    assert {name: True for name, tensor in model.state_dict().items() if torch.equal(tensor, tensors[name])} == dict.fromkeys(
        tensors, True
    )
    assert modes == [module.training for module in model.modules()]
    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    assert saved == model.peft_config["default"].to_dict()
    assert torch.equal(before, logits(model))
    assert all(layer.routing is None and layer.fixed_gates is None for layer in model.base_model.adapted_layers().values())


def test_stored_in_float32_when_the_adapter_is_narrower(tmp_path):
    model = get_peft_model(Stack(), config(task_type=None, num_experts=4)).to(torch.bfloat16)
    export_lora(model, tmp_path / "lora")
    assert {t.dtype for t in load_file(tmp_path / "lora" / "adapter_model.safetensors").values()} == {torch.float32}


def test_a_named_adapter_is_exported_though_another_is_active(llama, make_llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=4))
    model.add_adapter("second", config(variant="hydra", num_experts=3, init_seed=4, target_modules=["v_proj", "o_proj"]))
    export_lora(model, tmp_path / "second", adapter="second")
    export_lora(model, tmp_path / "first")
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["target_modules"] == ["o_proj", "v_proj"]
    assert len(load_file(tmp_path / "first" / "adapter_model.safetensors")) == 28
    model.set_adapter("second")
    alone = get_peft_model(make_llama(), config(variant="hydra", num_experts=3, init_seed=4, target_modules=["v_proj", "o_proj"]))
    with alone.base_model.fixed_gates({}):
        expected = logits(alone)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make_llama(), tmp_path / "second")), expected, rtol=0, atol=1e-5)


def test_adapters_on_different_modules_are_measured_each_by_itself(llama):
    model = get_peft_model(llama, config(num_experts=4, target_modules=["q_proj"])).eval()
    model.add_adapter("second", config(num_experts=3, target_modules=["v_proj"]))
    model.set_adapter("second")
    gates = mean_gates(model, [{"input_ids": IDS}])
    assert list(gates) == ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]
    assert routing_gap(model, [{"input_ids": IDS}], gates).kl > 0


# The folder


def test_written_twice_it_has_the_same_bytes(llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=4))
    for folder in ("one", "two"):
        export_lora(model, tmp_path / folder)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with safe_open(tmp_path / "one" / "adapter_model.safetensors", framework="pt") as file:
        assert list(file.keys()) == sorted(file.keys())
        assert file.metadata() == {"format": "pt"}
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "one").iterdir()}
    assert len(modes) == 1  # whoever may read the one file may read the other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


SCRIPT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
assert not any(name.partition(".")[0] == "malora" for name in sys.modules)
with torch.no_grad():
    torch.save(model(input_ids=torch.tensor({ids})).logits, out)
"""


@pytest.mark.slow
def test_stock_peft_loads_it_in_an_interpreter_without_malora(base_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), config(num_experts=4)).eval()
    written = export_lora(model, tmp_path / "lora")
    assert written.base_model_name_or_path == str(base_folder)
    with model.base_model.fixed_gates({}):
        expected = logits(model)
    script = SCRIPT.replace("{ids}", repr(IDS.tolist()))
    command = [sys.executable, "-c", script, str(base_folder), str(tmp_path / "lora"), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-5)


def refused_by_vllm(folder: Path, linears: set[str], max_lora_rank: int) -> list[str]:
    """What vLLM's loader would say against a LoRA folder; ``linears``: the last parts of the names of the model's linears.

    The rules are those of its reading of adapter_config.json, of the tensors' names, and of the check against the server's
    --max-lora-rank.
    """
    wrong = []
    saved = json.loads((folder / "adapter_config.json").read_text())
    wrong += [f"lacks {key}" for key in ("r", "lora_alpha", "target_modules") if saved.get(key) is None]
    if saved.get("peft_type") != "LORA" or not isinstance(saved.get("target_modules"), list):
        wrong.append("no LoRA with a list of target_modules")
    if saved.get("bias", "none") != "none" or saved.get("lora_bias"):
        wrong.append("biases")
    wrong += [
        key for key in ("use_dora", "modules_to_save", "trainable_token_indices", "rank_pattern", "alpha_pattern") if saved.get(key)
    ]
    if max_lora_rank not in SERVED_RANKS or not 0 < saved["r"] <= max_lora_rank:
        wrong.append("rank")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        parts = key.split(".")
        if parts[:2] != ["base_model", "model"] or parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B"):
            wrong.append(f"unsupported weight {key}")
        elif parts[-3] not in linears:
            wrong.append(f"unexpected module {key}")
        else:
            found.setdefault(".".join(parts[2:-2]), {})[parts[-2]] = tensor
    for module, pair in found.items():
        if set(pair) != {"lora_A", "lora_B"} or not pair["lora_A"].shape[0] == pair["lora_B"].shape[1] == saved["r"]:
            wrong.append(f"shapes of {module}")
    return wrong


@pytest.mark.parametrize("variant", VARIANTS)
def test_vllm_accepts_the_folder(variant, llama, tmp_path):
    linears = {name.rpartition(".")[2] for name, module in llama.named_modules() if isinstance(module, nn.Linear)}
    model = get_peft_model(llama, config(**VARIANTS[variant]))
    export_lora(model, tmp_path / "lora")
    assert refused_by_vllm(tmp_path / "lora", linears, 8) == []
    assert refused_by_vllm(tmp_path / "lora", linears, 1) == ["rank"]
    model.save_pretrained(tmp_path / "routed")
    assert refused_by_vllm(tmp_path / "routed", linears, 8)


def test_names_are_endings_where_these_match_exactly(llama, make_llama, tmp_path):
    def targets(number: int, **changes) -> list[str]:
        model = get_peft_model(make_llama(), config(num_experts=2, **changes))
        written = export_lora(model, tmp_path / str(number))
        again = PeftModel.from_pretrained(make_llama(), tmp_path / str(number))
        adapted = {name for name, m in again.base_model.model.named_modules() if hasattr(m, "lora_A")}
        assert adapted == set(model.base_model.adapted_layers())
        return written.target_modules

    assert targets(1, target_modules=["v_proj", "q_proj"]) == ["q_proj", "v_proj"]
    assert targets(2, target_modules=r".*self_attn\.[qk]_proj") == ["k_proj", "q_proj"]
    assert targets(3, target_modules=["q_proj"], layers_to_transform=[1]) == ["model.layers.1.self_attn.q_proj"]
    assert len(targets(4)) == 7


def test_a_name_that_is_also_an_ending_matches_only_itself(tmp_path):
    model = get_peft_model(Stack(), config(task_type=None, target_modules="up|inner.down", num_experts=2))
    assert list(model.base_model.adapted_layers()) == ["inner.down", "up"]
    export_lora(model, tmp_path / "lora")
    again = PeftModel.from_pretrained(Stack(), tmp_path / "lora")
    assert {name for name, m in again.base_model.model.named_modules() if hasattr(m, "lora_A")} == {"inner.down", "up"}


def test_whole_modules_are_written_for_peft_with_a_warning(llama, make_llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=2, target_modules=["q_proj"], modules_to_save=["lm_head"])).eval()
    model.base_model.model.lm_head.modules_to_save["default"].weight.data += 0.1
    with pytest.warns(UserWarning, match=r"whole modules \(lm_head\); PEFT loads them, vLLM does not"):
        export_lora(model, tmp_path / "lora")
    with model.base_model.fixed_gates({}):
        expected = logits(model)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make_llama(), tmp_path / "lora")), expected, rtol=0, atol=1e-5)
    assert "modules_to_save" in refused_by_vllm(tmp_path / "lora", {"q_proj"}, 8)


def test_a_folder_with_something_else_is_refused(llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=2))
    export_lora(model, tmp_path / "lora")
    export_lora(model, tmp_path / "lora")  # the same once more: nothing to do
    before = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds another adapter"):
        export_lora(model, tmp_path / "lora", random_gates(model))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis: holds something else \(chapter.txt\)"):
        export_lora(model, tmp_path / "thesis")
    with pytest.raises(InputError, match="a file stands where the folder is to be"):
        export_lora(model, tmp_path / "thesis" / "chapter.txt")
    assert (tmp_path / "lora" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_an_export_that_breaks_off_leaves_nothing(llama, tmp_path, monkeypatch):
    model = get_peft_model(llama, config(num_experts=2))

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(LoraConfig, "save_pretrained", full_disk)
        for name in ("new", "empty"):
            with pytest.raises(OSError, match="No space left"):
                export_lora(model, tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    (tmp_path / ".new.unfinished").mkdir()  # of one that was killed
    (tmp_path / "empty" / ".unfinished").mkdir()
    for name in ("new", "empty"):
        export_lora(model, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


# Wrong input


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (
            {"model.layers.7": [1, 0]},
            r"'model.layers.7' is not adapted by 'default'; adapted are model.layers.0.mlp.down_proj, .* more",
        ),
        ({Q0: [1.0]}, "q_proj: 1 numbers; expected one for each of its 2 experts"),
        ({Q0: [0.5, math.nan]}, "q_proj: .*expected finite numbers"),
        ({Q0: torch.tensor([math.inf, 0])}, "q_proj: .*expected finite numbers"),
    ],
)
def test_wrong_gates_are_refused_by_name(gates, message, llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=2))
    with pytest.raises(InputError, match=message):
        export_lora(model, tmp_path / "lora", gates)
    with pytest.raises(InputError, match=message):
        routing_gap(model, [{"input_ids": IDS}], gates)
    assert not list(tmp_path.iterdir())


def test_models_without_an_adapter_of_ours_are_refused(llama, make_llama, tmp_path):
    with pytest.raises(InputError, match="this is a LlamaForCausalLM with LlamaModel"):
        export_lora(llama, tmp_path / "lora")
    lora = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"]))
    for refused in (lambda: export_lora(lora, tmp_path / "lora"), lambda: mean_gates(lora, []), lambda: routing_gap(lora, [])):
        with pytest.raises(InputError, match="this is a PeftModel with LoraModel"):
            refused()
    model = get_peft_model(make_llama(), config(num_experts=2))
    with pytest.raises(InputError, match="has no adapter 'other'; it has default"):
        export_lora(model, tmp_path / "lora", adapter="other")
    model.add_adapter("second", config(num_experts=2))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(InputError, match="expected one active adapter, and there are 2: default, second"):
        export_lora(model, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(llama, tmp_path):
    model = get_peft_model(llama, config(num_experts=2))
    model.base_model.adapted_layers()[Q0].malora_B["default"].data[1, 0, 0] = math.nan
    with pytest.raises(InputError, match=r"q_proj: the adapter 'default' holds weights that are not finite"):
        export_lora(model, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


# The gates and the gap


def record_gates(model, batches) -> dict[str, torch.Tensor]:
    """Module -> all gates of the counted tokens (tokens, N), by a hook that reads the layer's input."""
    seen: dict[str, list[torch.Tensor]] = {}
    counted: list[torch.Tensor] = []

    def hook(layer, arguments):
        settings, (x,) = layer.configs["default"], arguments
        x = x @ layer.malora_A["default"].T if settings.shared_router else x
        seen.setdefault(layer.name, []).append(gate(x @ layer.malora_router["default"].T, settings.top_k)[counted[-1]])

    handles = [layer.register_forward_pre_hook(hook) for layer in model.base_model.adapted_layers().values()]
    with torch.no_grad():
        for batch in batches:
            counted.append(batch.get("mask", batch.get("attention_mask", torch.ones_like(batch["input_ids"]))).bool())
            model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "lora"])
def test_mean_gates_weigh_every_counted_token_alike(variant, llama):
    model = get_peft_model(llama, config(**VARIANTS[variant])).eval()
    batches = [
        {"input_ids": IDS, "attention_mask": MASK},
        {"input_ids": IDS[:1, :4] + 1, "attention_mask": torch.ones(1, 4, dtype=torch.long)},
        {"input_ids": IDS, "attention_mask": MASK, "mask": torch.tensor([[0, 0, 1, 1, 0, 0], [0] * 6])},
    ]
    expected = record_gates(model, batches)
    measured = mean_gates(model, batches)
    assert list(measured) == list(model.base_model.adapted_layers())
    for name, numbers in measured.items():
        assert len(expected[name]) == 10 + 4 + 2
        torch.testing.assert_close(torch.tensor(numbers), expected[name].mean(0), rtol=0, atol=1e-6)
        if VARIANTS[variant].get("top_k") != 1:
            assert sum(numbers) == pytest.approx(1, abs=1e-6)
    assert len({tuple(numbers) for numbers in measured.values()}) > 1
    assert mean_gates(model, iter(batches)) == measured


def test_gates_of_a_lora_are_one(llama, tmp_path):
    model = get_peft_model(llama, config(variant="lora")).eval()
    gates = mean_gates(model, [{"input_ids": IDS}])
    assert set(map(tuple, gates.values())) == {(1.0,)} and len(gates) == 14
    export_lora(model, tmp_path / "lora", gates)
    gap = routing_gap(model, [{"input_ids": IDS}], gates)
    assert gap.difference == pytest.approx(0, abs=1e-6) and gap.agreement == 1


def test_the_gap_is_that_of_two_models(make_llama, tmp_path):
    model = get_peft_model(make_llama(), config(num_experts=4, lora_alpha=0.5)).eval()
    gates = random_gates(model)
    batches = [{"input_ids": IDS, "attention_mask": MASK}, {"input_ids": IDS[1:, :3], "labels": torch.tensor([[-100, -100, 101]])}]
    gap = routing_gap(model, batches, gates)
    export_lora(model, tmp_path / "lora", gates)
    lora = PeftModel.from_pretrained(make_llama(), tmp_path / "lora")
    routed, fixed, targets = [], [], []
    for row, length in ((0, 4), (1, 6)):
        for out, source in ((routed, model), (fixed, lora)):
            out.append(logits(source, IDS[row : row + 1, :length])[0, :-1])
        targets.append(IDS[row, 1:length])
    for out, source in ((routed, model), (fixed, lora)):
        out.append(logits(source, IDS[1:, :3])[0, 1:2])
    targets.append(torch.tensor([101]))
    p, q, wanted = torch.cat(routed), torch.cat(fixed), torch.cat(targets)
    assert gap.tokens == len(wanted) == 3 + 5 + 1
    assert gap.loss_routed == pytest.approx(cross_entropy(p, wanted).item(), abs=1e-4)
    assert gap.loss_fixed == pytest.approx(cross_entropy(q, wanted).item(), abs=1e-4)
    assert gap.difference == gap.loss_fixed - gap.loss_routed
    divergence = kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean")
    assert gap.kl == pytest.approx(divergence.item(), rel=1e-3) and gap.kl > 1e-4
    assert gap.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item()) and 0 < gap.agreement < 1
    with pytest.raises(AttributeError):
        gap.kl = 0.0


def test_padding_is_neither_predicted_nor_predicted_from(llama):
    model = get_peft_model(llama, config(num_experts=4, lora_alpha=50)).eval()
    right = {"input_ids": torch.tensor([[5, 9, 33, 7, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    left = {key: value.roll(2, dims=1) for key, value in right.items()}
    plain = {"input_ids": right["input_ids"][:, :4]}
    assert routing_gap(model, [right]).tokens == routing_gap(model, [left]).tokens == routing_gap(model, [plain]).tokens == 3
    assert routing_gap(model, [right]).loss_routed == pytest.approx(routing_gap(model, [plain]).loss_routed, abs=1e-6)


def test_routers_that_never_choose_have_no_gap(llama):
    model = get_peft_model(llama, config(num_experts=4, top_k=4)).eval()
    for layer in model.base_model.adapted_layers().values():
        layer.malora_router["default"].data.zero_()
    gap = routing_gap(model, [{"input_ids": IDS, "attention_mask": MASK}])
    assert gap.difference == pytest.approx(0, abs=1e-6)
    assert gap.kl == pytest.approx(0, abs=1e-6) and gap.kl >= 0
    assert gap.agreement == 1


def test_batches_without_a_counted_token_are_refused(llama):
    model = get_peft_model(llama, config(num_experts=2))
    nothing = {"input_ids": IDS, "attention_mask": MASK, "mask": torch.zeros_like(MASK)}
    for batches in ([], [nothing]):
        with pytest.raises(InputError, match="no token that counts"):
            mean_gates(model, batches)
        with pytest.raises(InputError, match="no token to predict"):
            routing_gap(model, batches)


# Rows of a dataset


def test_rows_come_from_validation_first_and_are_spread(make_dataset, tokenizer, tmp_path):
    data = make_dataset(tmp_path / "data", {"en": (8, 4), "fr": (8, 4), "zh": (8, 1)})
    chosen = gate_rows(data, tokenizer, rows=8)
    assert len(chosen.held_out) == 2 and len(chosen.gates) == 6 and not chosen.trained
    assert {row.language for row in chosen.held_out} == {"en", "fr"}
    assert {row.language for row in chosen.gates} == {"en", "fr", "zh"}
    numbers = {"en": range(8, 12), "fr": range(8, 12), "zh": range(8, 9)}  # the validation rows
    assert all(int(row.id[-3:]) in numbers[row.language] for row in chosen.held_out + chosen.gates)
    more = gate_rows(data, tokenizer, rows=256)
    assert len(more.held_out) + len(more.gates) == 33 and not more.trained
    assert not {row.id for row in more.held_out} & {row.id for row in more.gates}
    french = gate_rows(data, tokenizer, language="fr", task="chat_specific", rows=4)
    assert {row.language for row in french.held_out + french.gates} == {"fr"}
    one = gate_rows(make_dataset(tmp_path / "one", {"en": (11, 1)}), tokenizer)
    assert [row.id for row in one.held_out] == ["en-chat_specific-011"] and len(one.gates) == 11 and not one.trained
    none = gate_rows(make_dataset(tmp_path / "none", {"en": (8, 0)}), tokenizer)
    assert len(none.held_out) == 2 and len(none.gates) == 6 and none.trained


def test_rows_that_are_not_there_are_refused(make_dataset, tokenizer, tmp_path):
    data = make_dataset(tmp_path / "data", {"en": (2, 1), "fr": (2, 0)})
    with pytest.raises(InputError, match=r"no row has language 'de'; there are en_chat_specific, fr_chat_specific"):
        gate_rows(data, tokenizer, language="de")
    with pytest.raises(InputError, match=r"no row has language 'en' and task 'math'"):
        gate_rows(data, tokenizer, language="en", task="math")
    with pytest.raises(InputError, match="0 of the rows asked for have an answer; at least two"):
        gate_rows(data, tokenizer, max_tokens=2)


def test_batches_count_the_answers_only(make_dataset, tokenizer, tmp_path):
    chosen = gate_rows(make_dataset(tmp_path / "data", {"en": (8, 4)}), tokenizer, rows=7)
    told = []
    batches = list(answer_batches(chosen.gates, 4, lambda *done: told.append(done)))
    assert told == [(4, 6), (6, 6)]
    assert sum(int(batch["mask"].sum()) for batch in batches) == sum(int(row.learned[1:].sum()) for row in chosen.gates)
    for batch in batches:
        assert torch.equal(batch["mask"], batch["labels"] != -100)
        assert not (batch["mask"] & ~batch["attention_mask"].bool()).any()
