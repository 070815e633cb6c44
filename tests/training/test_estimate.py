"""A dry run's figures: parameters as published, memory as measured, FLOPs as counted, and each with the sum it is."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.estimates import CONFIGS, comment, estimate_of, in_file
from benchmarks.published import PARAMETERS, PUBLISHED, model_folder
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from training import tiny
from xtoken.config import parse_config
from xtoken.errors import XTokenError
from xtoken.training import LoadedModel, distil
from xtoken.training.estimate import Estimate, Machine, Plan, estimate
from xtoken.training.trace import model_shape, read_config, train_bytes

SMALL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def small(folder: Path, name: str = "small", **changes: Any) -> str:
    """A folder with the config.json of a small Llama."""
    LlamaConfig(**{**SMALL, **changes}).save_pretrained(folder / name)
    return str(folder / name)


def of(folder: Path, machine: Machine | None = None, **changes: Any) -> Estimate:
    """The estimate for a small student and a small teacher; a change replaces a section."""
    raw: dict[str, Any] = {
        "student": small(folder),
        "teachers": [{"model": small(folder, "teacher", hidden_size=96, num_hidden_layers=2), "loss": "p-kl"}],
        "data": {"files": ["x"], "context_length": 128},
        "optim": {"batch_size": 16, "steps": 10},
    }
    return estimate(parse_config(raw | changes), machine)


def by_name(figures: Any) -> Mapping[str, float]:
    return {figure.name: figure.value for figure in figures}


def peak(plan: Plan) -> float:
    return sum(by_name(plan.held).values()) + max(by_name(plan.phases).values())


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_parameters_are_those_published(hub_id: str, tmp_path: Path) -> None:
    config = read_config(str(model_folder(tmp_path, hub_id)), who="student")
    shape = model_shape(config, "student")
    assert shape.parameters / 1e9 == pytest.approx(PARAMETERS[hub_id], rel=0.002)
    assert (shape.layers, shape.positions) == (config.num_hidden_layers, config.max_position_embeddings)


def test_activations_of_a_llama_follow_the_formula_of_the_documentation(tmp_path: Path) -> None:
    """What a layer more keeps, with float32 weights and products in bfloat16."""
    tokens, h, i, q, k, heads = 256, 64, 192, 64, 32, 4
    kept = []
    for layers in (2, 3):
        config = read_config(small(tmp_path, num_hidden_layers=layers), who="student")
        found = train_bytes(
            config, "student", documents=2, tokens=tokens, dtype=torch.float32, autocast=True, checkpointing=False
        )
        kept.append(found.kept)
    weights = 2 * (2 * h * q + 2 * h * k + 3 * h * i)  # copies in bfloat16
    a_token = 26 * h + 2 * (2 * q + 2 * k) + 8 * i + 4 * heads + 2 * 4
    assert kept[1] - kept[0] == 2 * tokens * a_token + weights


def test_recomputing_keeps_one_hidden_state_a_layer(tmp_path: Path) -> None:
    def kept(layers: int) -> int:
        config = read_config(small(tmp_path, num_hidden_layers=layers), who="student")
        return train_bytes(
            config, "student", documents=1, tokens=256, dtype=torch.float32, autocast=False, checkpointing=True
        ).kept

    assert kept(3) - kept(2) == 4 * 256 * SMALL["hidden_size"]


@pytest.mark.parametrize(("micro", "checkpointing"), [(1, False), (1, True), (2, False)])
def test_the_peak_is_the_one_that_is_measured(tmp_path: Path, micro: int, checkpointing: bool) -> None:
    """Two real steps on the CPU, by the allocator's own record; documents fill the context."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "max_position_embeddings": 320}
    student, teacher = tiny.student(num_hidden_layers=4, **sizes), tiny.teacher(num_hidden_layers=2, **sizes)
    weights = sum(4 * p.numel() for one in (student, teacher) for p in one.model.parameters())
    raw: dict[str, Any] = {
        "teachers": [{"loss": "p-kl", "context_length": 310}],  # it splits numbers
        "data": {"context_length": 256},
        "optim": {"steps": 2, "batch_size": 2, "micro_batch_size": micro, "gradient_checkpointing": checkpointing},
    }
    texts = [" ".join(tiny.documents(40, seed)) for seed in range(4)]
    measured = weights + allocated(tmp_path / "trace.json", raw, student, teacher, texts)
    for name, one in (("student", student), ("teacher", teacher)):
        one.model.config.save_pretrained(tmp_path / name)
    raw["student"], raw["teachers"][0]["model"] = str(tmp_path / "student"), str(tmp_path / "teacher")
    found = estimate(parse_config(raw), Machine(gpus=1, on_gpu=False)).plans[0].peak
    assert found == pytest.approx(measured, rel=0.15)


def allocated(file: Path, raw: dict[str, Any], student: LoadedModel, teacher: LoadedModel, texts: list[str]) -> int:
    """The most bytes that a run had allocated at once over those at its start."""
    gc.collect()  # what earlier runs left would be let go in the middle of this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = distil(raw, student=student, teachers=[teacher], texts=texts, quiet=True)
    assert result.data.student_tokens > 240 * len(texts)
    record.export_chrome_trace(str(file))
    now = most = 0
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    for event in sorted(events, key=lambda event: float(event["ts"])):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    """Weights and head exactly; of attention torch counts the whole square, and a causal kernel makes half of it."""
    tokens = 128
    found = by_name(of(tmp_path, loss={"kd_weight": 1.0}).flops)
    model = LlamaForCausalLM._from_config(LlamaConfig(**SMALL), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, tokens, dtype=torch.int64)).logits.sum().backward()
    expected = found["student, weights"] + found["student, head"] + 2 * found["student, attention"]
    assert counter.get_total_flops() == tokens * expected


@pytest.mark.parametrize(("loss", "every"), [({"gradient_norms": 5}, 5), ({"kd_weight": "gradient"}, 20)])
def test_measuring_gradients_is_counted(tmp_path: Path, loss: dict[str, Any], every: int) -> None:
    plain, measured = of(tmp_path, Machine(gpus=4)), of(tmp_path, Machine(gpus=4), loss=loss)
    figures = by_name(measured.flops)
    student = sum(value for name, value in figures.items() if name.startswith("student"))
    teacher = sum(value for name, value in figures.items() if name.startswith("teacher"))
    assert figures["gradient norms"] == pytest.approx((2 * student + teacher) / every)
    assert measured.flops_per_token - plain.flops_per_token == pytest.approx(figures["gradient norms"])
    one, _, sharded = (by_name(plan.held) for plan in measured.plans)
    assert one["gradient norms"] == one["student, gradients"]
    assert "gradient norms" not in sharded
    assert measured.not_counted == ()


def test_figures_add_up_and_say_how(tmp_path: Path) -> None:
    machine = Machine(gpus=4, flops=1e12, utilisation=0.5, memory=1e9)
    found = of(tmp_path, machine)
    assert [plan.name for plan in found.plans] == ["1 GPU", "4 GPUs, DDP", "4 GPUs, FSDP"]
    assert found.tokens == 10 * 16 * 128
    for plan in found.plans:
        assert plan.peak == peak(plan)
        assert plan.tokens_per_second == pytest.approx(plan.gpus * 0.5e12 / found.flops_per_token)
        assert plan.hours == pytest.approx(found.tokens / plan.tokens_per_second / 3600)
        assert plan.gpu_hours == pytest.approx(plan.gpus * plan.hours)
    assert all(f.source for p in found.plans for f in (*found.parameters, *found.flops, *p.held, *p.phases))
    one, replicated, sharded = (by_name(plan.held) for plan in found.plans)
    weights = 4 * by_name(found.parameters)["student"]
    assert one["student, weights"] == one["student, gradients"] == weights
    assert one["student, AdamW's moments"] == 2 * weights
    assert set(replicated) - set(one) == {"DDP's buckets"}
    assert sharded["student, weights"] == weights / 4
    assert sharded["teacher teacher, weights"] == one["teacher teacher, weights"]
    assert one["teacher teacher, weights"] == 2 * by_name(found.parameters)["teacher teacher"]
    assert json.loads(json.dumps(found.to_json()))["plans"][0]["peak"] == found.plans[0].peak


def test_activations_are_held_through_the_teachers_passes_and_the_losses(tmp_path: Path) -> None:
    config = read_config(small(tmp_path), who="student")
    how: dict[str, Any] = {"dtype": torch.float32, "autocast": True, "checkpointing": False}
    kept = train_bytes(config, "student", documents=1, tokens=128, **how).kept
    phases = by_name(of(tmp_path).plans[0].phases)
    head, logits = 1000 * 64, 128 * 2000
    assert phases["losses"] > kept + 4 * head + 4 * logits
    assert phases["teacher's forward pass"] > kept
    assert phases["backward pass"] > kept + 4 * head


@pytest.mark.parametrize("way", [{"loss": "strict"}, {"loss": "alm"}, {"loss": "partition-kl"}, {"merge": "mean"}])
def test_a_loss_without_a_version_from_hidden_states_holds_logits(tmp_path: Path, way: dict[str, Any]) -> None:
    teacher = {"model": small(tmp_path, "teacher"), "loss": "p-kl", **way}
    phases = [f for f in of(tmp_path, teachers=[teacher]).plans[0].phases if f.name == "losses"]
    assert "3 x 4 bytes x 128 tokens x 1,000" in phases[0].source
    assert "a loss without a version from hidden states" in phases[0].source


def test_types_count_their_bytes(tmp_path: Path) -> None:
    wide, halved = of(tmp_path), of(tmp_path, student={"model": small(tmp_path), "dtype": "bfloat16"})
    for name in ("student, weights", "student, gradients", "student, AdamW's moments"):
        assert by_name(wide.plans[0].held)[name] == 2 * by_name(halved.plans[0].held)[name]


def test_what_is_advised_does_fit(tmp_path: Path) -> None:
    sections = {"data": {"context_length": 512}, "optim": {"batch_size": 16, "micro_batch_size": 4}}
    asked = of(tmp_path, Machine(gpus=1), **sections).plans[0].peak
    machine = Machine(gpus=1, memory=0.7 * asked)
    plan = of(tmp_path, machine, **sections).plans[0]
    assert not plan.fits
    assert any(advice.startswith("optim.micro_batch_size=1: ") for advice in plan.advice)
    assert of(tmp_path, machine, **{**sections, "optim": {"batch_size": 16, "micro_batch_size": 1}}).plans[0].fits
    hopeless = of(tmp_path, Machine(gpus=1, memory=1e5), **sections).plans[0]
    assert len(hopeless.advice) == 1
    assert hopeless.advice[0].startswith("all of optim.micro_batch_size=1, ")
    assert hopeless.advice[0].endswith("which does not fit either")


def test_positions_bound_the_context(tmp_path: Path) -> None:
    long = of(tmp_path, data={"files": ["x"]})
    assert long.tokens == 10 * 16 * 512
    assert "512 tokens" in long.assumptions[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {}}, "there is no student"),
        ({"teachers": [{}]}, "teachers.0 names no model"),
        ({"student": "/nowhere/model"}, "student: there is no model folder /nowhere/model"),
        ({"optim": {"batch_size": 10}}, "batch_size 10 does not divide into micro-batches of 1 on 8 GPUs"),
        ({"optim": {"batch_size": 8, "micro_batch_size": 3}}, "does not divide into micro-batches of 3 on 1 GPU"),
    ],
)
def test_what_cannot_be_estimated_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no model folder: it has no config.json"),
        ("{", "cannot read the config.json"),
        ('{"model_type": "no such"}', "cannot read the config.json"),
        ('{"model_type": "vit"}', "no causal language model can be made"),
    ],
)
def test_a_config_json_that_is_none_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(XTokenError, match=f"student: .*{message}"):
        of(tmp_path, student=str(folder))


def test_without_the_hub_a_hub_id_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(XTokenError, match=r"student: cannot read the config.json of 'no/such': .* name a folder"):
        of(tmp_path, student="no/such")


@pytest.mark.parametrize(
    "machine", [Machine(gpus=0), Machine(flops=0), Machine(utilisation=1.5), Machine(memory=float("inf"))]
)
def test_a_machine_out_of_range_is_told(tmp_path: Path, machine: Machine) -> None:
    with pytest.raises(XTokenError, match="it must be above 0"):
        of(tmp_path, machine)


def test_a_setting_that_is_not_counted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xtoken.training import estimate as module

    assert of(tmp_path).not_counted == ()
    known = {**module._COUNTED, "optim": ("steps",)}
    monkeypatch.setattr(module, "_COUNTED", known)
    assert of(tmp_path).not_counted == ("optim.batch_size",)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_estimates_in_the_shipped_configs_are_those_of_the_dry_run(file: Path) -> None:
    """To 2 %, for another release of a model's code may hold a tensor more."""
    written, made = in_file(file), comment(file, estimate_of(file))
    refresh = "refresh with: python -m benchmarks.estimates --write"
    number = r"\d[\d,]*\.?\d*"
    assert re.sub(number, "N", written) == re.sub(number, "N", made), refresh
    values = [[float(n.replace(",", "")) for n in re.findall(number, text)] for text in (written, made)]
    assert values[0] == pytest.approx(values[1], rel=0.02), refresh
