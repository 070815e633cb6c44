"""Distillation by a Trainer: no config file. `python trainer.py STUDENT TEXT.txt OUTPUT TEACHER [TEACHER ...]`.

Models are folders or hub ids; one document a line. The loss of each teacher is the one that the audit recommends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from xtoken import XTokenTrainer, load_model, load_teacher, prepare
from xtoken.training import Side, save_student, texts_from_files


def main(argv: Sequence[str], **settings: Any) -> XTokenTrainer:
    """Trains, saves the student in OUTPUT, and returns the trainer; `settings` go to its arguments."""
    student_name, text, output, *teacher_names = argv
    student = load_model(student_name)
    teachers = [load_teacher(name, student) for name in teacher_names]  # loss="p-kl", weight=0.5, ...
    trainer = XTokenTrainer(
        model=student.model,
        teachers=[teacher.online() for teacher in teachers],
        args=TrainingArguments(
            output, **{"max_steps": 100, "per_device_train_batch_size": 8, "logging_steps": 1, **settings}
        ),
        train_dataset=prepare(texts_from_files([text]), Side(student.vocabulary, 512), [t.side for t in teachers]),
        student_vocab_size=student.vocabulary.size,
    )
    trainer.train()
    save_student(student.model, Path(output), student.tokenizer_files)
    return trainer


if __name__ == "__main__":
    main(sys.argv[1:])
