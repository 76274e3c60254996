"""The variants in PEFT, transformers and torch.compile: what users do with a LoRA, and the faults of other routers there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from malora import MaloraConfig
from malora.adapter.layer import MaloraLinear

IDS = torch.tensor([[5, 9, 33, 7, 12, 200], [7, 7, 101, 3, 4, 11]])
OPTIONS: dict[str, dict[str, Any]] = {
    "malora": {"num_experts": 4},
    "wide": {"num_experts": 4, "expert_rank": 3, "shared_rank": 5},
    "shared router": {"num_experts": 4, "shared_router": True},
    "frozen": {"num_experts": 4, "freeze_shared": True},
    "top 1": {"num_experts": 4, "top_k": 1},
    "moe_lora": {"variant": "moe_lora", "num_experts": 4},
    "hydra": {"variant": "hydra", "num_experts": 4},
    "lora": {"variant": "lora"},
}
every_variant = pytest.mark.parametrize("name", OPTIONS)


def config(name: str, **changes: Any) -> MaloraConfig:
    settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 2, "init_weights": False}
    return MaloraConfig(**{**settings, **OPTIONS[name], **changes})


def layer(name: str, *, frozen: bool = True) -> MaloraLinear:
    torch.manual_seed(0)
    base = nn.Linear(16, 12).requires_grad_(not frozen)
    return MaloraLinear(base, "default", config(name), "layer")


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@every_variant
def test_saved_and_loaded_it_is_the_same_model(make_llama, tmp_path, name):
    model = get_peft_model(make_llama(), config(name)).eval()
    base = logits(make_llama())
    assert not torch.equal(logits(model), base)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert torch.equal(logits(model), logits(again))
    with again.disable_adapter():
        assert torch.equal(logits(again), base)


@every_variant
def test_it_starts_as_the_identity_bit_for_bit(make_llama, name):
    assert torch.equal(logits(make_llama()), logits(get_peft_model(make_llama(), config(name, init_weights=True)).eval()))


@pytest.mark.parametrize("alpha", [4, 6])
def test_one_expert_with_p_the_identity_is_the_lora_variant_bit_for_bit(alpha):
    torch.manual_seed(0)
    one = MaloraLinear(
        nn.Linear(16, 12), "default", MaloraConfig(r=4, lora_alpha=alpha, num_experts=1, init_weights=False), "layer"
    )
    lora = MaloraLinear(one.base_layer, "default", MaloraConfig(r=4, lora_alpha=alpha, variant="lora"), "layer")
    one.malora_P["default"].data = torch.eye(4)[None]
    for key in ("malora_A", "malora_B"):
        getattr(lora, key)["default"].data = getattr(one, key)["default"].data
    x = torch.randn(3, 5, 16)
    assert torch.equal(one(x), lora(x))


def test_the_lora_variant_is_peft_s_lora(make_llama):
    theirs = get_peft_model(make_llama(), LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False))
    ours = get_peft_model(make_llama(), config("lora", lora_alpha=4))
    known = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        if isinstance(module, MaloraLinear):
            module.malora_A["default"].data = known[name].lora_A["default"].weight.data
            module.malora_B["default"].data = known[name].lora_B["default"].weight.data[None]
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-6)


def passes(module: nn.Module) -> list[torch.Tensor]:
    """Output and gradients."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    module.zero_grad()
    y = module(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@every_variant
@pytest.mark.parametrize("frozen", [True, False])
def test_the_layer_compiles_without_a_graph_break(name, frozen):
    eager = layer(name, frozen=frozen)
    expected = passes(eager)
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(passes(compiled), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_computes_the_same():
    eager = layer("malora")
    expected = passes(eager)
    torch._dynamo.reset()
    for ours, theirs in zip(passes(torch.compile(eager, fullgraph=True)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_variant
def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients(name):
    module = layer(name)
    x = torch.randn(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module(x), rtol=0.1, atol=0.15)
    y.float().square().sum().backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained)


def test_a_hook_on_the_base_layer_sees_the_base_s_output():
    module = layer("malora")
    x = torch.randn(2, 5, 16)
    seen: list[torch.Tensor] = []
    plain = module(x)
    handle = module.base_layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    assert torch.equal(module(x), plain)
    assert torch.equal(seen[0], nn.functional.linear(x, module.base_layer.weight, module.base_layer.bias))
    handle.remove()


def test_an_offloaded_base_layer_is_computed_by_its_own_forward():
    """accelerate leaves the weight on meta and puts a forward of its own on the instance."""
    module = layer("malora")
    x = torch.randn(2, 5, 16)
    expected = module(x)
    cpu_offload(module.base_layer, execution_device="cpu")
    assert module.base_layer.weight.is_meta
    torch.testing.assert_close(module(x), expected)


def test_an_offloaded_adapter_is_refused_not_guessed():
    module = layer("malora").to("meta")
    assert module(torch.randn(2, 5, 16, device="meta")).is_meta  # shapes can be tried without numbers
    with pytest.raises(RuntimeError, match="layer: the adapter's weights were offloaded"):
        module(torch.randn(2, 5, 16))


def test_a_weight_that_is_more_than_a_tensor_is_left_to_its_own_layer():
    class Quantised(nn.Parameter):
        """Knows how to be a linear layer's weight and nothing else, as quantised tensors do."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            plain = [arg.as_subclass(torch.Tensor) if isinstance(arg, cls) else arg for arg in args]
            if func is nn.functional.linear:
                return func(*plain)
            assert func not in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__)
            return super().__torch_function__(func, types, args, kwargs or {})

    module = layer("malora")
    x = torch.randn(2, 5, 16, requires_grad=True)
    expected = module(x).detach()
    module.base_layer.weight = Quantised(module.base_layer.weight.detach(), requires_grad=False)
    y = module(x)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), expected)


def test_backward_may_stand_inside_autocast_though_forward_did_not():
    module, other = layer("malora"), layer("malora")
    x = torch.randn(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            y = module(x)
        y.square().sum().backward()
    other(x).square().sum().backward()
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert mine.grad is theirs.grad is None or torch.equal(mine.grad, theirs.grad)


def test_a_base_that_trains_too_gets_its_gradients():
    module = layer("malora", frozen=False)
    passes(module)
    assert module.base_layer.weight.grad is not None and module.base_layer.bias.grad is not None


def test_a_frozen_a_stays_frozen_whatever_is_switched(make_llama):
    model = get_peft_model(make_llama(), config("frozen"))
    model.add_adapter("second", config("malora"))
    model.set_adapter("second")
    with model.disable_adapter():
        pass
    model.set_adapter("default")
    model.base_model.enable_adapter_layers()
    model.set_requires_grad("default", True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.endswith("malora_A.default") for name in trained)
    assert any(name.endswith("malora_B.default") for name in trained)


def test_disabling_disables_inside_generate_and_generating_leaves_the_mode_alone(make_llama):
    """Both have been faults of another routed adapter in PEFT."""
    model = get_peft_model(make_llama(), config("malora", lora_alpha=400))
    options = {"input_ids": IDS[:1], "attention_mask": torch.ones_like(IDS[:1]), "max_new_tokens": 6, "do_sample": False}
    plain = make_llama().generate(**options)
    for training in (True, False):
        model.train(training)
        adapted = model.generate(**options)
        with model.disable_adapter():
            assert torch.equal(model.generate(**options), plain)
        assert not torch.equal(adapted, plain)
        assert all(module.training == training for module in model.modules())
        assert all(layer.routing is None for layer in model.base_model.adapted_layers().values())


STRANGER = """
import sys, torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
base, adapter = sys.argv[1:]
loaders = [
    lambda: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter),
    lambda: PeftConfig.from_pretrained(adapter),
    lambda: AutoPeftModelForCausalLM.from_pretrained(adapter),
    lambda: AutoModelForCausalLM.from_pretrained(base).load_adapter(adapter),
]
for load in loaders:
    try:
        load()
    except Exception as error:
        print("TOLD", error)
"""


@pytest.mark.slow
def test_who_has_not_imported_malora_is_told_to(make_llama, base_folder, tmp_path):
    model = get_peft_model(make_llama(), config("malora"))
    model.peft_config["default"].base_model_name_or_path = str(base_folder)
    model.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", STRANGER, base_folder, tmp_path], capture_output=True, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
    assert len(told) == 4, done.stdout + done.stderr
    assert all("install glotloom and run `import malora` before loading this adapter" in line for line in told)
