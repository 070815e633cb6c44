"""Makes what `xtoken demo` ships, from nothing: both tokenizers, the student's config and the trained teacher.

    python scripts/make_demo.py                      # into src/xtoken/demo/assets, about 7 minutes of one core
    python scripts/make_demo.py --out DIR --check    # elsewhere, and compared with what is shipped

One thread and fixed seeds: the tokenizers and the config come out the same to the byte anywhere; the teacher's weights
on the same machine with the same torch, and elsewhere up to the rounding of another CPU's kernels. `--check` says of
each file whether it is the same, and how well the shipped teacher does on fresh problems.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from xtoken.demo.assets import ASSETS
from xtoken.demo.problems import problems
from xtoken.evaluation.answers import Answer, exact_answers
from xtoken.tokens import Vocabulary

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
END_TEACHER = "<|endoftext|>"

# Letters with the space before them, a run of digits, punctuation with the space before it, white space: a number never
# shares a token with a space. Only the digits differ between the two.
PATTERN = r" ?\p{L}+|%s| ?[^\s\p{L}\p{N}]+|\s+"
PACKED_DIGITS, SINGLE_DIGITS = r"\p{N}{1,3}", r"\p{N}"

# Words that one tokenizer is trained without, so that it spells them in pieces where the other has them whole.
UNSEEN_BY_STUDENT = ("Zoe", "Wanda", "Yusuf", "plumber", "walnuts", "Zurich", "Silva")
UNSEEN_BY_TEACHER = ("Ana", "Dario", "Femi", "lawyer", "marbles", "Havana", "Kaya")
TOKENIZER_PROBLEMS = 6000
# Every numeral of up to three digits, so often that each becomes a token before any word does.
NUMERAL_REPEATS = 2000
STUDENT_VOCAB, TEACHER_VOCAB = 1740, 640

CONTEXT = 128  # tokens; the longest problem has about 60
STUDENT_SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TEACHER_SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}

TOKENIZER_SEED, TEACHER_SEED, TEXT_SEED, FRESH_SEED = 11, 0, 100, 101
STEPS, BATCH, LEARNING_RATE, WARMUP = 2500, 32, 3e-3, 0.05
FRESH_PROBLEMS = 400


def train_tokenizer(digits: str, unseen: Sequence[str], vocab_size: int, specials: list[str], extra: str) -> Tokenizer:
    """A byte-level BPE tokenizer of clean problems without the unseen words, and of the extra text."""
    texts = [p.text for p in problems(TOKENIZER_SEED, TOKENIZER_PROBLEMS)]
    texts = [text for text in texts if not any(word in text for word in unseen)]
    return trained(texts, digits, vocab_size, specials, extra)


def trained(texts: Sequence[str], digits: str, vocab_size: int, specials: list[str], extra: str) -> Tokenizer:
    """A byte-level BPE tokenizer of some texts and of the extra one."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN % digits), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, extra], trainer)
    return tokenizer


def all_numerals() -> str:
    """0 to 9, 00 to 99 and 000 to 999."""
    return " ".join(f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width))


def student_tokenizer() -> Tokenizer:
    """Packs up to three digits and puts a begin token in front, as Llama-3's does."""
    numerals = " ".join([all_numerals()] * NUMERAL_REPEATS)
    tokenizer = train_tokenizer(PACKED_DIGITS, UNSEEN_BY_STUDENT, STUDENT_VOCAB, [BEGIN, END], numerals)
    add_begin(tokenizer, BEGIN)
    return tokenizer


def add_begin(tokenizer: Tokenizer, begin: str) -> None:
    """Puts a begin token in front of every text."""
    special = (begin, tokenizer.token_to_id(begin))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[special])


def teacher_tokenizer() -> Tokenizer:
    """Splits digits one by one and adds nothing by itself, as Qwen's does."""
    return train_tokenizer(SINGLE_DIGITS, UNSEEN_BY_TEACHER, TEACHER_VOCAB, [END_TEACHER], "")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, begin: str | None, end: str) -> None:
    """tokenizer.json, and a tokenizer_config.json whose class makes AutoTokenizer take the former as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", {key: value for key, value in config.items() if value is not None})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def model_config(vocab_size: int, shape: dict[str, int], begin: int | None, end: int) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocab_size,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
        **shape,
    )


def train_teacher(model: LlamaForCausalLM, vocabulary: Vocabulary) -> None:
    """Next-token prediction on clean problems, each ended by the end token; no problem is seen twice."""
    texts = [p.text for p in problems(TEXT_SEED, STEPS * BATCH)]
    batches = (batch_of(vocabulary, texts[step * BATCH : (step + 1) * BATCH]) for step in range(STEPS))
    train(model, batches, STEPS, "teacher")


def train(model: LlamaForCausalLM, batches: Iterable[tuple[Tensor, Tensor]], steps: int, name: str) -> None:
    """Next-token prediction on as many batches as steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP)
    for step, (ids, labels) in enumerate(batches, 1):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % (steps // 5) == 0:
            print(f"{name}: step {step} of {steps}: {loss.item() / math.log(2):.3f} bits per token", flush=True)


def batch_of(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, int64 [B, L], padded on the right, where causal attention does not look."""
    sequences = [[*spans.ids.tolist(), vocabulary.eos_id] for spans in vocabulary.encode_batch(texts)]
    shape = (len(sequences), max(map(len, sequences)))
    ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -100)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = labels[row, : len(sequence)] = torch.tensor(sequence)
    return ids, labels


def make_student(folder: Path) -> None:
    tokenizer = student_tokenizer()
    missing = [numeral for numeral in all_numerals().split() if tokenizer.token_to_id(numeral) is None]
    if missing:
        raise SystemExit(f"the student's tokenizer lacks {len(missing)} numerals, {missing[0]} for one")
    save_tokenizer(tokenizer, folder, BEGIN, END)
    ids = (tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END))
    model_config(tokenizer.get_vocab_size(), STUDENT_SHAPE, *ids).save_pretrained(folder)


def make_teacher(folder: Path) -> None:
    tokenizer = teacher_tokenizer()
    save_tokenizer(tokenizer, folder, None, END_TEACHER)
    torch.manual_seed(TEACHER_SEED)
    config = model_config(tokenizer.get_vocab_size(), TEACHER_SHAPE, None, tokenizer.token_to_id(END_TEACHER))
    model = LlamaForCausalLM(config)
    train_teacher(model, Vocabulary.from_pretrained(folder))
    model.save_pretrained(folder)


def score(folder: Path) -> float:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    fresh = [Answer(p.prompt, p.answer) for p in problems(FRESH_SEED, FRESH_PROBLEMS)]
    return exact_answers(model, Vocabulary.from_pretrained(folder), fresh)


def compare(made: Path) -> None:
    """Prints file by file whether what was made is what is shipped."""
    for path in sorted(file for file in ASSETS.rglob("*.*") if file.suffix in (".json", ".safetensors")):
        relative = path.relative_to(ASSETS)
        same = (made / relative).is_file() and (made / relative).read_bytes() == path.read_bytes()
        print(f"{relative}: {'the same' if same else 'DIFFERENT'}")
    print(f"shipped teacher: {score(ASSETS / 'teacher'):.1%} exact answers on fresh problems")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--check", action="store_true", help="compare with the shipped files; needs --out")
    parser.add_argument("--no-teacher", action="store_true", help="tokenizers and the student's config only")
    args = parser.parse_args()
    if args.check and args.out == ASSETS:
        parser.error("--check compares --out DIR with the shipped files: name another folder")
    os.environ["RAYON_NUM_THREADS"] = "1"  # the tokenizers library reads it at its first parallel work
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    began = time.perf_counter()
    make_student(args.out / "student")
    if not args.no_teacher:
        make_teacher(args.out / "teacher")
        print(f"made in {time.perf_counter() - began:.0f} s: {score(args.out / 'teacher'):.1%} exact answers")
    if args.check:
        compare(args.out)


if __name__ == "__main__":
    main()
