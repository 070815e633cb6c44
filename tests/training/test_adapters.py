"""LoRA students: they begin as their base model, only adapters learn, and what is saved is what was trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from training import tiny
from xtoken.config import LoraConfig, parse_config
from xtoken.errors import XTokenError
from xtoken.losses.fast import hidden as fast
from xtoken.teachers.causal import HiddenReader
from xtoken.tokens import Vocabulary
from xtoken.training import Collator, LoadedModel, distil, load_model, side_key
from xtoken.training.adapters import add_lora, finished
from xtoken.training.callbacks import StopRequest
from xtoken.training.distiller import Distiller
from xtoken.training.inputs import sources_of, training_data
from xtoken.training.participants import gather
from xtoken.training.run import cache_folder

TEXTS = tiny.documents(24)
IDS = torch.tensor([[0, 5, 6, 7, 300, 8]])


def config(folder: Path | None = None, lora: dict[str, Any] | None = None, **optim: Any) -> dict[str, Any]:
    """A run of a second in which adapters learn."""
    return {
        "student": {"lora": {"rank": 4, "alpha": 16, **(lora or {})}},
        "teachers": [{}],
        "optim": {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 3e-2, **optim},
        "output": {"save_every": 2, "keep_checkpoints": 9, **({"folder": str(folder)} if folder else {})},
    }


def run(settings: dict[str, Any], learner: LoadedModel | None = None, **options: Any) -> Any:
    return distil(
        settings, student=learner or tiny.student(), teachers=[tiny.teacher()], texts=TEXTS, quiet=True, **options
    )


def adapted(model: Any, seed: int = 0, **settings: Any) -> Any:
    """A model with adapters that have learnt something."""
    wrapped = add_lora(model, LoraConfig(**{"rank": 4, **settings}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return wrapped


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_it_begins_as_its_base_model() -> None:
    whole = {"steps": 1, "batch_size": 4, "micro_batch_size": 4}
    lora = run(config(**whole)).log[0]
    plain = run({**config(**whole), "student": {}}).log[0]
    assert (lora["ce"], lora["kd"]) == (plain["ce"], plain["kd"])


@pytest.mark.parametrize("tied", [True, False])
def test_only_adapters_on_every_linear_layer_but_the_head_learn(tied: bool) -> None:
    model = add_lora(tiny.llama(440, tie_word_embeddings=tied), LoraConfig(), seed=0)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(learning) == 2 * 7 * 2  # two matrices, on seven layers of two blocks
    assert all("lora_" in name for name in learning)


def test_adapters_start_from_the_seed_and_leave_the_random_state() -> None:
    def start(seed: int) -> torch.Tensor:
        model = add_lora(tiny.llama(440), LoraConfig(rank=2), seed=seed)
        return next(weight for name, weight in model.named_parameters() if "lora_A" in name)

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    model = tiny.llama(440)
    before = torch.get_rng_state()
    add_lora(model, LoraConfig(rank=2), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's, in its own loading
def test_a_saved_adapter_is_the_trained_model_on_an_unchanged_base(tmp_path: Path) -> None:
    source = tiny.student_folder(tmp_path / "base")
    settings = config(tmp_path / "out", {"save": "adapter"})
    settings["student"]["model"] = str(source)
    result = distil(settings, teachers=[tiny.teacher()], texts=TEXTS, quiet=True)
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(source)
    base = AutoModelForCausalLM.from_pretrained(source)
    assert not torch.equal(logits(result.student), logits(base))
    assert torch.equal(logits(load_model(str(tmp_path / "out"), who="model").model), logits(result.student))
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "out")), logits(result.student))
    kept = result.student.unload().state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in tiny.student().model.state_dict().items())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"model.safetensors", "config.json"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names


def test_a_merged_student_is_a_plain_model(tmp_path: Path) -> None:
    result = run(config(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(result.student) is type(loaded) is type(tiny.llama(440))
    assert torch.equal(logits(loaded), logits(result.student))
    assert set(loaded.state_dict()) == set(tiny.student().model.state_dict())
    assert all(weight.requires_grad for weight in result.student.parameters())
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_merging_changes_no_logits() -> None:
    model = adapted(tiny.llama(440))
    before = logits(model)
    merged = finished(model, LoraConfig())
    assert torch.allclose(logits(merged), before, atol=1e-5)
    assert not torch.allclose(before, logits(tiny.llama(440)), atol=1e-3)


def test_checkpoints_hold_adapters_alone(tmp_path: Path) -> None:
    run(config(tmp_path / "out"))
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert all("lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    assert not (checkpoint / "model.safetensors").exists()
    assert not (checkpoint / "README.md").exists()
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(moments) == 2 * 7 * 2


@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_a_run_that_goes_on_ends_as_the_unbroken_one(
    tmp_path: Path, save: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"save": save, "dropout": 0.2}  # dropout, so that a wrong random state would show
    run(config(tmp_path / "whole", lora))

    def stop(self: StopRequest, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self.asked = control.should_save = control.should_training_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "on_step_end", stop)
        first = run(config(tmp_path / "broken", lora))
    assert first.interrupted
    assert isinstance(first.student, PeftModel)
    assert run(config(tmp_path / "broken", lora), resume=True).steps == 4
    name = "model.safetensors" if save == "merged" else "adapter_model.safetensors"
    whole, broken = load_file(tmp_path / "whole" / name), load_file(tmp_path / "broken" / name)
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_a_finished_run_that_is_resumed_saves_the_same_again(tmp_path: Path) -> None:
    run(config(tmp_path / "out"))
    before = load_file(tmp_path / "out" / "model.safetensors")
    (tmp_path / "out" / "model.safetensors").unlink()
    run(config(tmp_path / "out"), resume=True)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_overwriting_removes_a_saved_adapter(tmp_path: Path) -> None:
    run(config(tmp_path / "out", {"save": "adapter"}))
    run(config(tmp_path / "out"), overwrite=True)
    assert not list((tmp_path / "out").glob("adapter_*"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


def batch_of(learner: LoadedModel) -> tuple[Distiller, dict[str, Any]]:
    """A fixed-weight distiller with one teacher, and a batch for it."""
    settings = parse_config({"teachers": [{}], "loss": {"kd_weight": 0.5}})
    members = gather(settings, learner, [tiny.teacher()], None)
    data = training_data(sources_of(settings.data, TEXTS), members, cache_folder(), progress=False)
    teachers = [member.online() for member in members.teachers]
    batch = Collator({side_key(tiny.split())})(data.__getitems__([0, 1, 2]))
    return Distiller(teachers, learner.vocabulary.size, 0.5), batch


def gradients(model: Any, vocabulary: Vocabulary, *, by_hidden: bool) -> tuple[float, dict[str, torch.Tensor]]:
    distiller, batch = batch_of(LoadedModel(model, vocabulary))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    model.zero_grad()
    if by_hidden:
        reader = HiddenReader.of(model)
        assert reader is not None
        found = distiller.outcome_from_hidden(reader.read(model, ids, mask), reader.head, batch, None)
    else:
        found = distiller.outcome(model(ids, attention_mask=mask).logits, batch, None)
    found.loss.backward()
    return found.loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_and_logits_give_one_gradient_and_frozen_weights_none(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    own = fast._Gradients.__init__

    def keep(self: Any, *args: Any) -> None:
        own(self, *args)
        made.append(self)

    monkeypatch.setattr(fast._Gradients, "__init__", keep)
    vocabulary = tiny.packed()
    model = adapted(tiny.llama(vocabulary.size + 12, tie_word_embeddings=tied).double())
    loss, by_hidden = gradients(model, vocabulary, by_hidden=True)
    assert [(g.hidden is None, g.weight) for g in made] == [(False, None)]  # no gradient of the head's size is made
    expected, by_logits = gradients(model, vocabulary, by_hidden=False)
    assert loss == pytest.approx(expected, rel=1e-10)
    assert by_hidden.keys() == by_logits.keys() == {n for n, p in model.named_parameters() if "lora_" in n}
    for name, gradient in by_logits.items():
        assert torch.allclose(by_hidden[name], gradient, rtol=1e-8, atol=1e-12), name


def test_an_adapter_on_the_head_is_read_by_the_logits_and_learns(tmp_path: Path) -> None:
    targets = {"target_modules": ["lm_head", "down_proj"]}
    assert HiddenReader.of(adapted(tiny.llama(440, tie_word_embeddings=False), **targets)) is None
    run(config(tmp_path / "out", {**targets, "save": "adapter"}), tiny.student(tie_word_embeddings=False))
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name.rpartition("lora_")[2] for name in saved} == {"A.weight", "B.weight"}
    learnt = [weight for name, weight in saved.items() if "lora_B" in name]  # these begin as zeros
    assert len(learnt) == 3
    assert all(weight.any() for weight in learnt)


def test_a_wrapper_is_seen_through_even_where_head_and_logits_have_one_width() -> None:
    model = adapted(tiny.llama(440, hidden_size=440, num_attention_heads=2, num_key_value_heads=2))
    reader = HiddenReader.of(model)
    assert reader is not None
    assert reader.decoder is model.get_base_model().model


def test_layers_that_hold_their_weight_the_other_way_round_learn_too(tmp_path: Path) -> None:
    vocabulary = tiny.packed()
    sizes = {"vocab_size": vocabulary.size, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
    torch.manual_seed(0)
    learner = LoadedModel(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)), vocabulary)
    result = run(config(tmp_path / "out", steps=10), learner)
    assert result.log[-1]["ce"] < result.log[0]["ce"]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(result.student))


def test_a_bfloat16_base_has_adapters_in_float32() -> None:
    model = adapted(tiny.llama(440, tie_word_embeddings=False).bfloat16())
    dtypes = {"lora" if "lora_" in name else "base": weight.dtype for name, weight in model.named_parameters()}
    assert dtypes == {"base": torch.bfloat16, "lora": torch.float32}
    assert HiddenReader.of(model) is not None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["q_proj", "qproj"], r"'qproj' is the end of no layer's name; there are .*q_proj"),
        (["embed_tokens"], "'embed_tokens' shares its weight between embeddings and head"),
        (["lm_head"], "'lm_head' shares its weight between embeddings and head"),
    ],
)
def test_a_target_that_cannot_be_is_told(names: list[str], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        add_lora(tiny.llama(440), LoraConfig(target_modules=names), seed=0)


def test_a_second_adapter_is_refused() -> None:
    model = add_lora(tiny.llama(440), LoraConfig(), seed=0)
    with pytest.raises(XTokenError, match="has an adapter already"):
        add_lora(model, LoraConfig(), seed=0)


def test_a_students_own_adapter_goes_on_learning(tmp_path: Path) -> None:
    learner = tiny.student()
    wrapped = LoadedModel(adapted(learner.model), learner.vocabulary)
    before = logits(wrapped.model)
    result = run({**config(tmp_path / "out"), "student": {}}, wrapped)
    assert not torch.equal(logits(result.student), before)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("xtoken.training.packages.find_spec", lambda name: None)
    with pytest.raises(XTokenError, match=r"student.lora needs the package peft.*pip install 'xtoken\[peft\]'"):
        distil({**config(), "student": {"model": "nowhere", "lora": {}}}, texts=TEXTS)  # before anything is loaded
    with pytest.raises(XTokenError, match=r"the adapter in .* needs the package peft"):
        load_model(str(tmp_path / "adapter"), who="student")
