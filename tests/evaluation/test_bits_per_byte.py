"""Bits per byte: every byte of the text is counted once, whatever the batch, the window or the tokenizer."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from training import tiny
from xtoken.errors import XTokenError
from xtoken.evaluation import CutText, Share, bits_per_byte
from xtoken.tokens import Vocabulary
from xtoken.tokens.classes import CLASSES

TEXTS = tiny.documents(6)
VOCABULARY = tiny.packed()
MODEL = tiny.llama(VOCABULARY.size + 5).eval()


def by_hand(text: str, model: Any = MODEL) -> float:
    """Bits of one document, scored whole with the bos in front, one token at a time."""
    ids = [0, *VOCABULARY.encode(text).ids.tolist()]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :, : VOCABULARY.size].double()
    return -sum(logits[i - 1].log_softmax(0)[ids[i]].item() for i in range(1, len(ids))) / math.log(2)


def test_it_is_the_bits_over_the_bytes() -> None:
    expected = sum(map(by_hand, TEXTS)) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(MODEL, VOCABULARY, TEXTS).bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_needs_log_v_bits_a_token() -> None:
    model = tiny.llama(VOCABULARY.size)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    found = bits_per_byte(model, VOCABULARY, TEXTS)
    assert found.total.bits == pytest.approx(found.total.tokens * math.log2(VOCABULARY.size), rel=1e-5)


def test_a_padded_head_takes_no_part() -> None:
    model = tiny.llama(VOCABULARY.size + 9, tie_word_embeddings=False)
    before = bits_per_byte(model, VOCABULARY, TEXTS).bits_per_byte
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY.size :] = 50.0
    assert bits_per_byte(model, VOCABULARY, TEXTS).bits_per_byte == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_changes_nothing(batch_size: int) -> None:
    whole = bits_per_byte(MODEL, VOCABULARY, TEXTS)
    parts = bits_per_byte(MODEL, VOCABULARY, TEXTS, batch_size=batch_size)
    assert parts.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)


def test_a_pass_holds_a_bounded_number_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is of tokens with their padding; a window that is too long by itself goes alone."""
    passes: list[torch.Size] = []
    hook = MODEL.register_forward_pre_hook(
        lambda _, __, given: passes.append(given["input_ids"].shape), with_kwargs=True
    )
    texts = [*TEXTS, " ".join(TEXTS)[:300]]
    try:
        whole = bits_per_byte(MODEL, VOCABULARY, texts)
        assert len(passes) == 1
        passes.clear()
        most = 3 * max(len(VOCABULARY.encode(text).ids) + 1 for text in TEXTS)
        monkeypatch.setattr(sys.modules["xtoken.evaluation.bits_per_byte"], "_LOGITS_A_PASS", most * VOCABULARY.size)
        bounded = bits_per_byte(MODEL, VOCABULARY, texts)
    finally:
        hook.remove()
    assert sum(shape[0] for shape in passes) == len(texts)
    assert all(shape.numel() <= most or shape[0] == 1 for shape in passes)
    assert max(shape[0] for shape in passes) >= 3
    assert bounded.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)


@settings(max_examples=30)
@given(st.text(alphabet="0123456789 abé世🙂\n", min_size=1, max_size=80), st.integers(2, 40))
def test_every_byte_is_scored_once_in_windows_of_any_length(text: str, context: int) -> None:
    found = bits_per_byte(MODEL, VOCABULARY, [text], context_length=context)
    assert found.total.tokens == len(VOCABULARY.encode(text))
    assert found.total.bytes == len(text.encode())
    assert found.unscored_bytes == 0


def test_a_window_gives_every_token_at_least_half_of_it() -> None:
    """A model that looks at the token before alone scores the same in windows and in one piece."""
    text = " ".join(TEXTS)
    model = tiny.llama(VOCABULARY.size, num_hidden_layers=1, max_position_embeddings=4096)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()  # no attention: position and history do not matter
    whole = bits_per_byte(model, VOCABULARY, [text])
    cut = bits_per_byte(model, VOCABULARY, [text], context_length=10)
    assert cut.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)


def test_classes_add_up_and_numerals_are_the_digits() -> None:
    found = bits_per_byte(MODEL, VOCABULARY, TEXTS)
    classes = [found.classes[name] for name in CLASSES if name in found.classes]
    assert sum(score.bytes for score in classes) == found.total.bytes
    assert sum(score.tokens for score in classes) == found.total.tokens
    assert sum(score.bits for score in classes) == pytest.approx(found.total.bits)
    digits = sum(c.isdigit() for text in TEXTS for c in text)
    assert found.classes["numerals"].bytes == digits
    assert sum(found.classes[f"digits-{n}"].bytes for n in (1, 2, 3)) == digits


def test_a_first_token_that_nothing_predicts_is_left_out_and_counted() -> None:
    spec = Tokenizer.from_str(tiny.tokenizer_json(3, 420, False))
    spec = Tokenizer.from_str(spec.to_str().replace('"<s>"', '"<x>"'))  # no prefix, and no bos to stand for it
    vocabulary = Vocabulary.from_tokenizer(spec)
    assert (vocabulary.prefix_ids, vocabulary.bos_id) == ((), None)
    found = bits_per_byte(MODEL, vocabulary, ["Ada has 1", "7"], context_length=2)
    first = [len(vocabulary.tokens[vocabulary.encode(text).ids[0]]) for text in ("Ada has 1", "7")]
    assert found.unscored_bytes == sum(first)
    assert found.total.bytes + found.unscored_bytes == len("Ada has 1" + "7")


def test_a_bos_that_is_not_automatic_is_used_all_the_same() -> None:
    found = bits_per_byte(MODEL, tiny.packed(bos=False), TEXTS)
    assert found.bits_per_byte == pytest.approx(bits_per_byte(MODEL, VOCABULARY, TEXTS).bits_per_byte, rel=1e-6)


def test_text_that_a_tokenizer_rewrites_counts_as_it_was_written() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0)], 0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    text = "Ａda has ½ and 世 of 12 \n"
    found = bits_per_byte(MODEL, Vocabulary.from_tokenizer(tokenizer), [text])
    assert found.total.bytes == len(text.encode())


def test_the_model_is_left_as_it_came() -> None:
    model = tiny.llama(VOCABULARY.size).train()
    bits_per_byte(model, VOCABULARY, TEXTS[:1])
    assert model.training


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "there is no text to score"),
        ([""], {}, "there is no text to score"),
        (TEXTS, {"context_length": 1}, "must be at least 2"),
        (TEXTS, {"context_length": 129}, "longer than the 128 positions the model has"),
    ],
)
def test_what_cannot_be_scored_is_told(texts: list[str], options: dict[str, int], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        bits_per_byte(MODEL, VOCABULARY, texts, **options)


def test_text_that_is_cut_once_scores_the_same_every_time() -> None:
    text, whole = CutText(MODEL, VOCABULARY, ["", *TEXTS]), bits_per_byte(MODEL, VOCABULARY, TEXTS)
    assert text.score(MODEL).to_json() == text.score(MODEL).to_json() == whole.to_json()
    assert (text.documents, text.bytes) == (whole.documents, whole.total.bytes)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_that_share_a_text_all_get_the_whole_in_equally_many_passes(processes: int) -> None:
    """Threads stand for processes; a barrier that not all reach would break."""
    text, whole = CutText(MODEL, VOCABULARY, TEXTS), bits_per_byte(MODEL, VOCABULARY, TEXTS)
    passes, parts, barrier = [0] * processes, [np.zeros(1)] * processes, threading.Barrier(processes, timeout=30)
    models = [tiny.llama(VOCABULARY.size + 5).eval() for _ in range(processes)]
    found: dict[int, Any] = {}

    def work(process: int) -> None:
        def forward(*_: Any) -> None:
            passes[process] += 1

        def add(sums: Any) -> Any:
            parts[process] = sums
            barrier.wait()
            return np.sum(parts, axis=0)

        with models[process].register_forward_hook(forward):
            share = Share(process, processes, add)
            found[process] = text.score(models[process], batch_size=1, share=share)

    threads = [threading.Thread(target=work, args=(process,)) for process in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passes == [-(-len(TEXTS) // processes)] * processes
    for process in range(processes):
        assert found[process].bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)
        assert found[process].to_json() | {"bits_per_byte": 0, "classes": 0} == (
            whole.to_json() | {"bits_per_byte": 0, "classes": 0}
        )


def test_every_part_of_a_model_is_left_in_the_mode_it_came_in() -> None:
    model = tiny.llama(VOCABULARY.size).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    CutText(model, VOCABULARY, TEXTS).score(model)
    bits_per_byte(model, VOCABULARY, TEXTS)
    assert [module.training for module in model.modules()] == before
    assert any(before)
    assert not all(before)


def test_text_that_nothing_predicts_is_refused() -> None:
    bare = tiny.packed(bos=False)
    model = tiny.llama(bare.size)
    if bare.bos_id is None:
        with pytest.raises(XTokenError, match="nothing predicts the first token"):
            CutText(model, bare, ["7"])
    with pytest.raises(XTokenError, match="every document is empty"):
        CutText(model, bare, ["", ""])
