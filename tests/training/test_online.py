"""A teacher is frozen, cut to its tokenizer, and refused where it cannot know its own tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from training import tiny
from xtoken.errors import XTokenError
from xtoken.losses import SameTokenizerKL
from xtoken.teachers.causal import HiddenReader
from xtoken.teachers.online import OnlineTeacher
from xtoken.teachers.signal import HeadSignal, LogitSignal

IDS = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def teach(model: Any, vocab_size: int, **settings: Any) -> OnlineTeacher:
    return OnlineTeacher("t", model, vocab_size, SameTokenizerKL(vocab_size), side="t", **settings)


def test_a_padded_head_is_cut_before_the_softmax() -> None:
    model = tiny.llama(40, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[30:] = 9.0  # padding that would take most of the mass
    signal = teach(model, 30).signal(IDS, MASK)
    assert isinstance(signal, HeadSignal)
    assert signal.log_probs.shape == (8, 30)
    assert torch.allclose(signal.log_probs.exp().sum(-1), torch.ones(8))


def scaled(logits_scaling: float) -> Any:
    """A Granite, which divides its logits by a number of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return GraniteForCausalLM(GraniteConfig(vocab_size=30, logits_scaling=logits_scaling, **sizes))


def test_logits_that_are_not_the_heads_own_are_read_as_the_model_gives_them() -> None:
    model = scaled(4.0)
    signal = teach(model, 30).signal(IDS, MASK)
    assert isinstance(signal, LogitSignal)
    with torch.no_grad():
        expected = model(IDS, attention_mask=MASK).logits.log_softmax(-1).flatten(0, 1)
    assert torch.allclose(signal.log_probs, expected, atol=1e-6)
    assert isinstance(teach(scaled(1.0), 30).signal(IDS, MASK), HeadSignal)  # the scale is what made the difference


class Capped(LlamaForCausalLM):
    """Caps its logits, and no setting says so; out of reach of the logits it has now."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits = 30 * torch.tanh(found.logits / 30)
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_tried_beyond_the_logits_it_has_now(dtype: torch.dtype) -> None:
    plain = tiny.llama(30)
    capped = Capped(plain.config)
    capped.load_state_dict(plain.state_dict())
    assert HiddenReader.of(plain.to(dtype)) is not None
    assert HiddenReader.of(capped.to(dtype)) is None
    assert HiddenReader.of(scaled(1.02).to(dtype)) is None


def test_a_head_of_zeros_shows_nothing_and_is_not_trusted() -> None:
    model = tiny.llama(30, tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert HiddenReader.of(model) is None


def test_an_offloaded_teacher_is_read_by_its_logits() -> None:
    model = tiny.llama(30)
    expected = teach(tiny.llama(30), 30).signal(IDS, MASK).log_probs
    signal = teach(cpu_offload(model, execution_device="cpu"), 30).signal(IDS, MASK)
    assert isinstance(signal, LogitSignal)
    assert torch.allclose(signal.log_probs, expected, atol=1e-6)


def test_hidden_states_and_logits_say_the_same() -> None:
    for model in (tiny.llama(30), tiny.llama(30, tie_word_embeddings=False)):
        teacher = teach(model, 30)
        from_hidden = teacher.signal(IDS, MASK).log_probs
        teacher.reader = None
        from_logits = teacher.signal(IDS, MASK)
        assert isinstance(from_logits, LogitSignal)
        assert torch.allclose(from_hidden, from_logits.log_probs, atol=1e-6)


def test_no_gradient_and_no_dropout() -> None:
    model = tiny.llama(30, attention_dropout=0.5).train()
    teacher = teach(model, 30)
    first, second = teacher.signal(IDS, MASK), teacher.signal(IDS, MASK)
    assert torch.equal(first.log_probs, second.log_probs)
    assert not first.log_probs.requires_grad
    assert not any(p.requires_grad for p in model.parameters())


def test_padding_changes_no_real_row() -> None:
    teacher = teach(tiny.llama(30), 30)
    alone = teacher.signal(IDS[1:, :3], MASK[1:, :3]).log_probs
    assert torch.allclose(teacher.signal(IDS, MASK).log_probs[4:7], alone, atol=1e-6)


def test_soft_capped_logits_are_used_as_the_model_caps_them() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(100)
    log_probs = teach(model, 30).signal(IDS, MASK).log_probs
    assert (log_probs.amax(-1) - log_probs.amin(-1) <= 4.0 + 1e-5).all()  # capped to [-2, 2]


def test_a_temperature_softens() -> None:
    model = tiny.llama(30)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(30)
    sharp, soft = teach(model, 30).signal(IDS, MASK), teach(model, 30, temperature=4.0).signal(IDS, MASK)
    assert soft.temperature == 4.0
    assert torch.allclose((sharp.log_probs / 4).log_softmax(-1), soft.log_probs, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_narrower_than_the_tokenizer_is_refused(tied: bool) -> None:
    with pytest.raises(XTokenError, match=r"teacher 't': its output head has 30 rows, but its tokenizer has 31 tokens"):
        teach(tiny.llama(30, tie_word_embeddings=tied), 31)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("weight", 0.0), ("weight", float("inf")), ("temperature", 0.0), ("temperature", float("inf"))],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: float) -> None:
    with pytest.raises(XTokenError, match=f"has {setting} {value}"):
        teach(tiny.llama(30), 30, **{setting: value})
