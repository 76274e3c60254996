"""MALoRA as a PEFT tuner: everything that people do with a LoRA, they can do with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import malora
from malora import InputError, MaloraConfig, load_adapter, parameter_report
from malora.adapter.balance import RoutingStatistics

IDS = torch.tensor([[5, 9, 33, 7, 12, 200], [7, 7, 101, 3, 4, 11]])


def config(**changes) -> MaloraConfig:
    settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 2, "num_experts": 4, "init_weights": False}
    return MaloraConfig(**{**settings, **changes})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_public_names_are_what_is_exported():
    for name in malora.__all__:
        assert getattr(malora, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        malora.nothing  # noqa: B018


def test_the_adapter_starts_as_the_identity(llama):
    before = logits(llama)
    model = get_peft_model(llama, config(init_weights=True))
    assert torch.equal(before, logits(model))


def test_shapes_are_those_of_the_specification(llama):
    model = get_peft_model(llama, config(expert_rank=3, shared_rank=5))
    layer = model.base_model.model.model.layers[0].mlp.down_proj  # 24 -> 16
    assert layer.malora_A["default"].shape == (5, 24)
    assert layer.malora_P["default"].shape == (4, 3, 5)
    assert layer.malora_B["default"].shape == (4, 16, 3)
    assert layer.malora_router["default"].shape == (4, 24)


def test_only_the_adapter_trains(llama):
    model = get_peft_model(llama, config())
    assert all(("malora_" in name) == p.requires_grad for name, p in model.named_parameters())


def test_one_expert_with_p_the_identity_is_lora(make_llama):
    lora = get_peft_model(make_llama(), LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", init_lora_weights=False))
    ours = get_peft_model(make_llama(), config(num_experts=1, top_k=1, lora_alpha=6))
    theirs = {name: m for name, m in lora.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    for name, layer in ours.named_modules():
        if hasattr(layer, "malora_A") and "default" in layer.malora_A:
            layer.malora_A["default"].data = theirs[name].lora_A["default"].weight.data
            layer.malora_B["default"].data = theirs[name].lora_B["default"].weight.data[None]
            layer.malora_P["default"].data = torch.eye(2)[None]
    torch.testing.assert_close(logits(ours), logits(lora), rtol=0, atol=1e-6)


def test_saving_and_loading_keep_every_bit(llama, make_llama, tmp_path):
    model = get_peft_model(llama, config()).eval()
    for folder in ("one", "two"):
        model.save_pretrained(tmp_path / folder)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for options in ({}, {"low_cpu_mem_usage": True}):
        again = PeftModel.from_pretrained(make_llama(), tmp_path / "one", **options)
        assert torch.equal(logits(model), logits(again))
    saved = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    # adapters in use bear this text, and PEFT looks it up: it can never change
    assert saved["peft_type"] == "MALORA: not part of PEFT; install glotloom and run `import malora` before loading this adapter"
    assert model.peft_config["default"].peft_type == "MALORA"
    assert "import malora" in (tmp_path / "one" / "README.md").read_text()
    assert saved["target_modules"] == sorted(saved["target_modules"])


def test_the_other_loaders_give_the_same_model(make_llama, base_folder, tmp_path):
    model = get_peft_model(make_llama(), config()).eval()
    model.peft_config["default"].base_model_name_or_path = str(base_folder)
    model.save_pretrained(tmp_path / "adapter")
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    plain = make_llama()
    plain.load_adapter(str(tmp_path / "adapter"))
    ours, _ = load_adapter(tmp_path / "adapter")
    for other in (auto, plain, ours):
        torch.testing.assert_close(logits(model), logits(other), rtol=0, atol=1e-6)


def test_adapters_can_be_added_switched_disabled_and_deleted(llama):
    base = logits(llama)
    model = get_peft_model(llama, config(init_seed=1)).eval()
    model.add_adapter("second", config(init_seed=2, num_experts=2))
    first = logits(model)
    model.set_adapter("second")
    second = logits(model)
    assert not torch.equal(first, second)
    with model.disable_adapter():
        assert torch.equal(base, logits(model))
    model.set_adapter("default")
    assert torch.equal(first, logits(model))
    model.delete_adapter("default")
    model.set_adapter("second")
    assert torch.equal(second, logits(model))


def test_generation_uses_the_adapter_with_and_without_a_cache(llama):
    model = get_peft_model(llama, config(lora_alpha=400)).eval()
    options = {"input_ids": IDS[:1], "attention_mask": torch.ones_like(IDS[:1]), "max_new_tokens": 8, "do_sample": False}
    cached, uncached = model.generate(**options, use_cache=True), model.generate(**options, use_cache=False)
    assert torch.equal(cached, uncached)
    with model.disable_adapter():
        assert not torch.equal(cached, model.generate(**options))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointed_gradients_equal_the_plain_ones_with_the_auxiliary_loss(make_llama):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = get_peft_model(make_llama(), config(router_aux_loss_coef=0.5)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with model.base_model.routing(torch.ones_like(IDS)) as routing:
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss + routing.auxiliary_loss()
            loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    plain = gradients(False)
    assert all(g is not None and g.abs().max() > 0 for g in plain)
    for one, two in zip(plain, gradients(True), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_base_with_a_float32_adapter(make_llama, autocast):
    model = get_peft_model(make_llama().to(torch.bfloat16), config())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(input_ids=IDS, labels=IDS)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    reference = logits(get_peft_model(make_llama(), config()))
    assert (logits(model).float() - reference).norm() <= 0.1 * reference.norm()


def test_the_layer_is_reused_not_recreated(llama):
    linear = llama.model.layers[0].self_attn.q_proj
    model = get_peft_model(llama, config())
    assert model.base_model.model.model.layers[0].self_attn.q_proj.base_layer is linear


def test_merging_is_refused_with_a_reason(llama):
    model = get_peft_model(llama, config())
    for method in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="cannot be merged"):
            method()


def test_further_modules_and_single_layers_can_be_chosen(llama, make_llama, tmp_path):
    model = get_peft_model(llama, config(modules_to_save=["lm_head"], layers_to_transform=[1], target_modules=["q_proj"])).eval()
    assert list(model.base_model.adapted_layers()) == ["model.layers.1.self_attn.q_proj"]
    model.base_model.model.lm_head.modules_to_save["default"].weight.data += 0.1
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(make_llama(), tmp_path)))


def test_unloading_gives_the_base_back(llama):
    before = logits(llama)
    model = get_peft_model(copy.deepcopy(llama), config())
    assert torch.equal(before, logits(model.unload()))


def test_routing_is_measured_only_inside_its_block(llama):
    model = get_peft_model(llama, config())
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with model.base_model.routing(mask) as routing:
        logits(model)
    statistics = RoutingStatistics(["one", "two", "none"])
    statistics.add(routing, [1, 0])
    table = statistics.table()
    assert table["groups"] == ["one", "two"] and table["tokens"] == [6, 4]
    assert len(table["modules"]) == 14  # seven linears in each of two layers
    logits(model)
    assert all(layer.routing is None for layer in model.base_model.adapted_layers().values())


def llama_attention(hidden: int = 256) -> nn.Module:
    """q, k, v and o of a Llama block, square as in Llama-2-7B."""
    return nn.ModuleDict({name: nn.Linear(hidden, hidden, bias=False) for name in ("q", "k", "v", "o")})


def trainable(model: nn.Module, *, routers: bool = True) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and (routers or "router" not in name))


@pytest.mark.parametrize("variant", ["malora", "moe_lora", "hydra", "lora"])
def test_the_report_counts_what_stands_in_the_modules(make_llama, variant):
    options = {"malora": {"expert_rank": 3, "shared_rank": 5}, "lora": {"num_experts": 1}}.get(variant, {})
    model = get_peft_model(make_llama(), config(r=2, variant=variant, **options))
    report = parameter_report(model)
    assert report.trainable == trainable(model)
    assert report.total == sum(p.numel() for p in model.parameters())
    lora = get_peft_model(make_llama(), LoraConfig(r=2, target_modules="all-linear"))
    assert report.lora == trainable(lora)
    for name, count in (("moe_lora", report.moe_lora), ("hydra", report.hydra_lora)):
        rival = get_peft_model(make_llama(), config(r=2, variant=name, num_experts=1 if variant == "lora" else 4))
        assert count == trainable(rival)
    linears = [m for m in make_llama().model.layers.modules() if isinstance(m, nn.Linear)]
    assert report.lora_rank_of_equal_size == pytest.approx(
        report.trainable / sum(m.weight.shape[0] + m.weight.shape[1] for m in linears)
    )
    assert report.macs == report.trainable and report.macs_base == sum(m.weight.numel() for m in linears)


def test_a_configuration_is_counted_like_the_model_it_makes(make_llama, base_folder):
    settings = config(expert_rank=3, shared_rank=5, freeze_shared=True)
    model = get_peft_model(make_llama(), settings)
    expected = parameter_report(model)
    assert expected.trainable == trainable(model)
    assert parameter_report(settings, make_llama()) == expected
    assert (
        parameter_report(config(expert_rank=3, shared_rank=5, freeze_shared=True, base_model_name_or_path=str(base_folder)))
        == expected
    )
    linears = [(m.in_features, m.out_features) for m in make_llama().model.layers.modules() if isinstance(m, nn.Linear)]
    assert parameter_report(settings, linears).trainable == expected.trainable
    with pytest.raises(ValueError, match="give it a base model"):
        parameter_report(config())


@pytest.mark.parametrize(("rank", "saving"), [(8, 0.40), (10, 0.29)])
def test_the_paper_s_saving_is_there_in_real_modules(rank, saving):
    """30-48 % fewer trainable parameters than a mixture of LoRAs of the same r and experts; routers, equal in both, apart."""
    settings = {"r": 8, "num_experts": 8, "target_modules": ["q", "k", "v", "o"], "task_type": None}
    ours = get_peft_model(llama_attention(1024), config(expert_rank=rank, **settings))
    theirs = get_peft_model(llama_attention(1024), config(variant="moe_lora", **settings))
    measured = 1 - trainable(ours, routers=False) / trainable(theirs, routers=False)
    assert measured >= saving
    assert parameter_report(ours).saving == pytest.approx(measured)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"r": 0}, "r = 0: expected a whole number of at least 1"),
        ({"r": 4, "expert_rank": 2}, "expert_rank = 2: expected at least r = 4"),
        ({"expert_rank": 8, "shared_rank": 4}, "shared_rank = 4: expected at least expert_rank = 8"),
        ({"top_k": 5}, "top_k = 5: expected at most num_experts = 4"),
        ({"num_experts": True}, "num_experts = True: expected a whole number"),
        ({"num_experts": "x"}, "num_experts = 'x': expected a whole number"),
        ({"target_modules": "*proj"}, r"target_modules = '\*proj': not a regular expression"),
        ({"format_version": 0}, "format_version = 0: expected a whole number of at least 1"),
        ({"lora_alpha": -1}, "lora_alpha = -1: expected a number of at least 0"),
        ({"bias": "all"}, "trains no biases"),
        ({"variant": "molora"}, "variant = 'molora': expected one of malora, moe_lora, hydra, lora"),
        ({"variant": "lora"}, "num_experts = 4: a plain lora has one"),
        ({"variant": "hydra", "shared_rank": 4}, "shared_rank = 4: variant 'hydra' has the one rank r = 2"),
        ({"variant": "moe_lora", "freeze_shared": True}, "freeze_shared = True: an option of variant 'malora'"),
        ({"format_version": 2}, "format_version = 2: this adapter was saved by a newer glotloom"),
    ],
)
def test_nonsense_is_refused_by_the_configuration(wrong, message):
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_a_target_that_is_not_linear_is_refused_by_name(llama):
    with pytest.raises(
        TypeError, match=r"target_modules: model\.embed_tokens is of type Embedding, and MALoRA adapts nn.Linear only"
    ):
        get_peft_model(llama, config(target_modules=["embed_tokens"]))


def test_an_adapter_of_another_kind_is_refused(llama, tmp_path):
    get_peft_model(llama, LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"not a MALoRA adapter: its peft_type is 'LORA'"):
        load_adapter(tmp_path)
    with pytest.raises(InputError, match=r"it has no adapter_config\.json"):
        load_adapter(tmp_path / "nothing")


def test_targets_that_match_nothing_are_told_what_there_is(llama):
    with pytest.raises(
        ValueError, match=r"target_modules = \['w_q'\]: no such module; linear layers of this model: down_proj, .*q_proj"
    ):
        get_peft_model(llama, config(target_modules=["w_q"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": "q_proj"}, r"a text is a regular expression for the whole name; a list takes endings"),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [99]},
            r"no such module is left after layers_to_transform = \[99\]; linear layers",
        ),
        (
            {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
            r"no such module is left after exclude_modules = \{'q_proj'\}; linear layers",
        ),
    ],
)
def test_targets_that_exist_but_do_not_match_are_told_why(llama, settings, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(llama, config(**settings))


def test_choosing_adapters_row_by_row_is_refused(llama):
    model = get_peft_model(llama, config())
    with pytest.raises(ValueError, match=r"adapter_names: a MALoRA adapter cannot be chosen row by row"):
        model(input_ids=IDS, adapter_names=["default", "__base__"])


def _edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    else:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)


ROUTER = "base_model.model.model.layers.0.mlp.up_proj.malora_router"
MISFITS = [
    ("adapter_config.json", lambda c: c.update(r=1, expert_rank=1), r"malora_P\.default is \(4, 2, 2\), expected \(4, 1, 2\)"),
    (
        "adapter_config.json",
        lambda c: c.update(variant="moe_lora"),
        r"\(moe_lora, r = 2\): malora_A\.default is \(2, 16\), expected \(8, 16\)",
    ),
    (
        "adapter_config.json",
        lambda c: c.update(variant="lora", num_experts=1, top_k=1),
        r"\(lora, r = 2\): malora_B\.default is \(4, 16, 2\), expected \(1, 16, 2\)",
    ),
    ("adapter_config.json", lambda c: c.update(format_version=9), "saved by a newer glotloom"),
    (
        "adapter_model.safetensors",
        lambda t: t[ROUTER].fill_(float("nan")),
        "malora_router.default holds values that are not finite",
    ),
    ("adapter_model.safetensors", lambda t: t.pop(ROUTER), "the file lacks malora_router.default"),
]


@pytest.mark.parametrize(("name", "change", "message"), MISFITS)
def test_an_adapter_that_does_not_fit_is_refused_by_peft_too(make_llama, base_folder, tmp_path, name, change, message):
    get_peft_model(make_llama(), config()).save_pretrained(tmp_path)
    _edit(tmp_path / name, change)
    with pytest.raises((RuntimeError, ValueError), match=message):
        PeftModel.from_pretrained(make_llama(), tmp_path)
    with pytest.raises(InputError, match=message):
        load_adapter(tmp_path, str(base_folder))


def test_a_file_with_other_modules_than_the_configuration_is_refused(make_llama, base_folder, tmp_path):
    get_peft_model(make_llama(), config()).save_pretrained(tmp_path)
    _edit(tmp_path / "adapter_config.json", lambda c: c.update(target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors has base_model.*down_proj\.malora_A"):
        load_adapter(tmp_path, str(base_folder))


def test_a_damaged_adapter_is_refused(llama, base_folder, tmp_path):
    get_peft_model(llama, config()).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        load_adapter(tmp_path / "a", str(base_folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("training.json", "{", r"training\.json: not the report of a training"),
        ("training.json", "{}", r"training\.json: not the report of a training"),
        (None, None, "the adapter names no base model; say which base_model to load"),
    ],
)
def test_an_adapter_whose_base_model_cannot_be_told_says_so(llama, tmp_path, name, content, message):
    get_peft_model(llama, config()).save_pretrained(tmp_path)
    _edit(tmp_path / "adapter_config.json", lambda c: c.update(base_model_name_or_path=None))
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_adapter(tmp_path)


def test_a_target_that_is_not_linear_in_another_base_is_told_in_one_line(llama, base_folder, tmp_path):
    get_peft_model(llama, config()).save_pretrained(tmp_path)
    _edit(tmp_path / "adapter_config.json", lambda c: c.update(target_modules=["embed_tokens"]))
    with pytest.raises(InputError, match=r"does not fit .*embed_tokens is of type Embedding"):
        load_adapter(tmp_path, str(base_folder))


def test_counting_a_configuration_copies_no_weights(llama, monkeypatch):
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda *_: pytest.fail("a weight was copied"))
    assert parameter_report(config(), llama).total > 0
    assert {parameter.device.type for parameter in llama.parameters()} == {"cpu"}
