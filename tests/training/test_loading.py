"""Where a model's weights come from and where they lie: its own code, quantisation, device maps, attention."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from training import tiny
from xtoken.config import parse_config
from xtoken.errors import XTokenError
from xtoken.losses import SameTokenizerKL
from xtoken.teachers.causal import HiddenReader
from xtoken.teachers.online import OnlineTeacher
from xtoken.teachers.signal import HeadSignal, LogitSignal
from xtoken.training import distil, load_model
from xtoken.training.arguments import trainer_arguments
from xtoken.training.models import _how

IDS = torch.tensor([[0, 5, 6, 7]])
TEXTS = tiny.documents(12)
RUN = {"optim": {"steps": 2, "batch_size": 2}}

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student's folder whose architecture transformers does not know."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = tiny.student_folder(tmp_path / "own")
    (folder / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": names}))
    return folder


def test_code_of_its_own_runs_only_when_it_is_trusted(own_code: Path, tmp_path: Path) -> None:
    plain = str(tiny.student_folder(tmp_path / "plain"))
    for names in ({"student": str(own_code)}, {"student": plain, "teachers": [str(own_code)]}):
        with pytest.raises(XTokenError, match=r"brings Python code of its own.*trust_remote_code: true"):
            distil({**RUN, **names}, texts=TEXTS, quiet=True)
    assert not (tmp_path / "modules").exists()
    trusted = {"model": str(own_code), "trust_remote_code": True}
    config = {**RUN, "student": trusted, "teachers": [trusted], "output": {"folder": str(tmp_path / "out")}}
    result = distil(config, texts=TEXTS, quiet=True)
    assert type(result.student).__name__ == "OwnForCausalLM"
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert torch.equal(loaded(IDS).logits, result.student.eval()(IDS).logits)


def test_the_attention_asked_for_is_the_one_used(tmp_path: Path) -> None:
    folder = tiny.student_folder(tmp_path / "student")
    for name in ("eager", "sdpa"):
        assert load_model(str(folder), who="student", attention=name).model.config._attn_implementation == name
    config = {**RUN, "student": {"model": str(folder), "attention": "flash_attention_2"}}
    with pytest.raises(XTokenError, match=r"student: cannot load .*[Ff]lash"):
        distil(config, texts=TEXTS, quiet=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("trust_remote_code", True),
        ("attention", "sdpa"),
        ("quantization", "4bit"),
        ("device_map", "auto"),
        ("device_map", {"": "cpu"}),
    ],
)
def test_how_to_load_has_no_effect_on_a_loaded_model(setting: str, value: Any) -> None:
    with pytest.raises(XTokenError, match=f"{setting} has no effect without model"):
        parse_config({"teachers": [{setting: value}]})


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantisation_that_cannot_be_is_told_before_anything_is_loaded(
    bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**RUN, "student": "nowhere", "teachers": [{"model": "nowhere", "quantization": bits}]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(XTokenError, match=r"teachers.0.quantization needs a CUDA GPU"):
        distil(config, texts=TEXTS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("xtoken.training.packages.find_spec", lambda name: None)
    with pytest.raises(XTokenError, match=r"the package bitsandbytes.*pip install 'xtoken\[quant\]'"):
        distil(config, texts=TEXTS)


def test_a_quantised_model_lies_on_its_processes_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken.training.models.check_quantization", lambda what: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    how = _how("bfloat16", None, "4bit", None)
    assert how["device_map"] == {"": 3}
    asked = how["quantization_config"]
    assert (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_compute_dtype) == (
        True,
        "nf4",
        torch.bfloat16,
    )
    assert _how("bfloat16", None, "8bit", "auto")["device_map"] == "auto"
    assert _how("bfloat16", None, "8bit", None)["quantization_config"].load_in_8bit


def teach(model: Any, *, is_placed: bool) -> OnlineTeacher:
    return OnlineTeacher("t", model, 30, SameTokenizerKL(30), side="t", is_placed=is_placed)


class Far(torch.nn.Module):
    """Shaped like a causal LM on a GPU, to be made and asked under a FakeTensorMode: shapes and devices, no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Identity()
        self.lm_head = torch.nn.Linear(8, 30, device="meta")
        self.lm_head.weight = torch.nn.Parameter(torch.empty(30, 8, device="cuda:1"))
        self.lm_head.bias = torch.nn.Parameter(torch.empty(30, device="cuda:1"))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        assert input_ids.device == attention_mask.device == self.lm_head.weight.device
        self.model((torch.empty(2, 4, 8, device=input_ids.device),))
        return SimpleNamespace(logits=torch.empty(2, 4, 30, device=input_ids.device))


@pytest.mark.parametrize("by_hidden", [True, False])
def test_a_teacher_elsewhere_is_asked_there_and_answers_here(by_hidden: bool) -> None:
    with FakeTensorMode():
        model, ids = Far(), torch.zeros(2, 4, dtype=torch.int64)
        teacher = teach(model, is_placed=True).to("cpu")
        teacher.reader = HiddenReader(model.model, model.lm_head, None) if by_hidden else None
        signal = teacher.signal(ids, torch.ones_like(ids))
        assert {weight.device.type for weight in model.parameters()} == {"cuda"}
        if not by_hidden:
            assert isinstance(signal, LogitSignal)
            assert signal.logits.device == ids.device
            return
        assert isinstance(signal, HeadSignal)
        assert signal.head.bias is not None
        assert signal.hidden.device == signal.head.weight.device == signal.head.bias.device == ids.device
        again = teacher.signal(ids, torch.ones_like(ids))
        assert isinstance(again, HeadSignal)
        assert again.head is signal.head  # the copy is made once


def test_beside_the_student_the_head_is_no_copy() -> None:
    model = tiny.llama(30, tie_word_embeddings=False)
    beside = teach(model, is_placed=False)
    near = beside.signal(IDS, torch.ones_like(IDS))
    assert isinstance(near, HeadSignal)
    assert near.head.weight is model.lm_head.weight


@pytest.mark.parametrize(("is_placed", "device"), [(False, "meta"), (True, "cpu")])
def test_only_a_teacher_that_is_not_placed_follows_the_student(is_placed: bool, device: str) -> None:
    teacher = teach(tiny.llama(30), is_placed=is_placed).to("meta")
    assert {weight.device.type for weight in teacher.model.parameters()} == {device}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, {"model": "cpu", "lm_head": "disk"}])
def test_a_mapped_teacher_teaches_as_a_plain_one(
    tmp_path: Path, device_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny.teacher_folder(tmp_path / "teacher", tie_word_embeddings=False)
    made = [
        distil({**RUN, "teachers": [teacher]}, student=tiny.student(), texts=TEXTS, quiet=True).log[-1]
        for teacher in ({"model": str(folder)}, {"model": str(folder), "device_map": device_map})
    ]
    assert made[0]["kd"] == pytest.approx(made[1]["kd"], rel=1e-6)
    loaded = load_model(str(folder), who="t", device_map=device_map).model
    if "disk" in device_map:
        assert loaded.lm_head.weight.is_meta
        assert HiddenReader.of(loaded) is None


def test_gpus_of_a_device_map_are_not_for_data_parallelism(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self.__dict__.get("_n_gpu", 4) or 4))
    mapped = parse_config({"teachers": [{"model": "a", "device_map": "auto"}]})
    plain = parse_config({"teachers": [{"model": "a"}]})
    counts = [trainer_arguments(config, tmp_path, saves=False, quiet=True).n_gpu for config in (mapped, plain)]
    assert counts == [1, 4]
