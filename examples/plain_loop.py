"""The loss alone, in a plain PyTorch loop: no Trainer, no config. `python plain_loop.py STUDENT TEACHER TEXT.txt`.

One document a line; a step sees a few of them, one after the other, and divides by what it has seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from xtoken import Vocabulary, align_batch, build_projection, losses, signal_from_logits

STEPS, DOCUMENTS_PER_STEP, LEARNING_RATE, MAX_TOKENS = 100, 8, 5e-5, 512


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Trains, prints both losses now and then, and returns the cross-entropy of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("student", "teacher", "text"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lr", type=float, default=LEARNING_RATE)
    args = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = AutoModelForCausalLM.from_pretrained(args.student).to(device).train()
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher).to(device).eval()
    vocab_s, vocab_t = Vocabulary.from_pretrained(args.student), Vocabulary.from_pretrained(args.teacher)

    texts = [line for line in Path(args.text).read_text(encoding="utf-8").splitlines() if line.strip()]
    aligned = align_batch(vocab_s, vocab_t, texts, add_special_tokens=True)  # once, not at every step
    aligned = [a for a in aligned if len(a.student_ids) <= MAX_TOKENS and len(a.teacher_ids) <= MAX_TOKENS]
    distillation = losses.PKL(build_projection(vocab_s, vocab_t)).to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr)

    history = []
    for step in range(args.steps):
        ce_terms, kd_terms = [], []
        for n in range(DOCUMENTS_PER_STEP):
            document = aligned[(step * DOCUMENTS_PER_STEP + n) % len(aligned)]
            ids_s = torch.from_numpy(document.student_ids).to(device)[None]
            ids_t = torch.from_numpy(document.teacher_ids).to(device)[None]
            logits = student(ids_s).logits
            with torch.no_grad():
                signal = signal_from_logits(teacher(ids_t).logits, vocab_t.size)
            index = losses.ChunkIndex.from_chunks(document.chunks, document.student_ids, document.teacher_ids)
            kd_terms.append(distillation(logits, signal, index.to(device)))
            ce_terms.append(losses.cross_entropy(logits, ids_s, vocab_s.size))
        ce, kd = (sum(terms[1:], terms[0]).mean() for terms in (ce_terms, kd_terms))  # sums and counts add up
        loss = ce + losses.dynamic_scale(ce, kd) * kd
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append(ce.item())
        if step % 10 == 0:
            print(f"step {step}: cross-entropy {ce.item():.3f}, P-KL {kd.item():.3f}")
    return history


if __name__ == "__main__":
    main()
