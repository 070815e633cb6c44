"""`XTokenTrainer`: transformers' Trainer with a distillation loss and counts that are exact.

The Trainer keeps what users know it for: checkpoints, resume, trackers, progress. Laws: cross-entropy is divided by the
number of scored tokens and each teacher's loss by its number of chunks, over the whole accumulation window and all
processes; the loss from logits never waits for the device, that from hidden states once a teacher and once more, and
the log waits once; a loss that is not finite ends the training at
the line of the log that shows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from xtoken.errors import XTokenError
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.teachers.causal import HiddenReader, causal_logits
from xtoken.teachers.online import OnlineTeacher, check_head
from xtoken.training.callbacks import JsonLines, LossBar
from xtoken.training.collator import Collator
from xtoken.training.data import PreparedData
from xtoken.training.distiller import DROPPED, Counts, Distiller, KdWeight, Terms
from xtoken.training.mixture import EpochSampler, MixedData
from xtoken.training.output import last_checkpoint
from xtoken.training.streaming import StreamedData

__all__ = ["XTokenTrainer"]


class XTokenTrainer(Trainer):
    """Trains a student on text and on what its teachers say of it.

    Logged at every `logging_steps`, to the trackers and to `metrics.jsonl` in the output folder, as means over the
    steps since the last line: `ce` and `kd` (nats per token and per chunk, raw), `kd/NAME` for each teacher,
    `kd_ce_ratio`, `kd_factor` (what the teachers' sum was multiplied by, the mean over the micro-batches) and
    `kd_factor_max` (the largest), `uncovered_mass` and `kept_chunks` (shares, also by teacher), `tokens_per_second`
    (the student's, without padding).

    Args:
        model: the student, a Hugging Face causal LM.
        teachers: each with its model, loss and weight; none trains by cross-entropy alone.
        args: the Trainer's own. What this trainer cannot honour is refused.
        train_dataset: examples, as `xtoken.training.prepare` makes them, a `MixedData` or a `StreamedData`.
        eval_dataset: likewise; its loss is the same combination, batch by batch.
        student_vocab_size: the size of the student's tokenizer; by default the width of its head.
        kd_weight: of the teachers' sum, or `dynamic`: scaled to the cross-entropy, micro-batch by micro-batch.
        ce_weight: of the cross-entropy.
        callbacks, optimizers: the Trainer's own.

    Raises:
        XTokenError: an argument that would have no effect; a dataset without the tokens of some teacher.
    """

    # compute_loss divides by the counts of the window, so the Trainer must not divide by its steps again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        teachers: Sequence[OnlineTeacher] = (),
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        student_vocab_size: int | None = None,
        kd_weight: KdWeight = "dynamic",
        ce_weight: float = 1.0,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = TrainingArguments(output_dir="xtoken-run") if args is None else args
        _check_arguments(args)
        _check_dataset(train_dataset, teachers)
        vocab_size = _head_width(model) if student_vocab_size is None else student_vocab_size
        check_head(model, vocab_size, "the student")
        args.remove_unused_columns = False  # examples are not dicts of the model's arguments
        if isinstance(train_dataset, StreamedData):
            args.ignore_data_skip = True  # the stream itself goes on where it stood
        use_cache = getattr(model.config, "use_cache", None)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator({teacher.side for teacher in teachers}),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[JsonLines(), *(callbacks or [])],
            optimizers=optimizers,
        )
        if use_cache is not None:  # the Trainer turns it off, and the student would be saved so: slow to generate with
            model.config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True  # how releases before loss_is_scaled_for_ga are told the same
        self._replace_progress()
        self.distiller = Distiller([t.to(self.args.device) for t in teachers], vocab_size, kd_weight, ce_weight)
        self._sums: dict[str, Tensor] = {}
        self._largest_factor: Tensor | None = None
        self._last_log = time.perf_counter()

    def _replace_progress(self) -> None:
        """Takes out what prints a dict at every step."""
        self.remove_callback(PrinterCallback)
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(LossBar)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, with a last look at the steps after the last line of the log.

        Raises:
            XTokenError: a loss is not finite.
        """
        self._sums, self._largest_factor, self._last_log = {}, None, time.perf_counter()
        outcome = super().train(*args, **kwargs)
        self._check_finite(self._drain())
        return outcome

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """An order that depends on the seed and the epoch alone."""
        data = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(data, (PreparedData, MixedData)):
            return super()._get_train_sampler(train_dataset)
        return EpochSampler(data, self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def get_train_dataloader(self) -> Any:
        """The Trainer's own; a stream is dealt out to the processes already, so nothing may divide it once more."""
        data = self.train_dataset
        if not isinstance(data, StreamedData):
            return super().get_train_dataloader()
        return DataLoader(
            _Iterated(data),
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # its own: the global one belongs to the model
        )

    def _save_rng_state(self, output_dir: str) -> None:
        """What each process needs to go on as it would have: its random state, and its place in the stream."""
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, StreamedData):
            self.train_dataset.save_position(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if isinstance(self.train_dataset, StreamedData) and checkpoint is not None:
            self.train_dataset.load_position(Path(checkpoint))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Counts]:
        """The micro-batches of one window, with the counts of all of them, over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = torch.stack([_scored_tokens(batch) for batch in batches]).sum() if batches else torch.tensor(0)
        chunks = {t.name: sum(_n_chunks(batch, t) for batch in batches) for t in self.distiller.teachers}
        flat = torch.stack([tokens.to(device), *(torch.full((), n, device=device) for n in chunks.values())])
        flat = self.accelerator.reduce(flat, reduction="sum")
        return batches, Counts(flat[0], dict(zip(chunks, flat[1:], strict=True)))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The micro-batch's share of the window's loss; the counts come from `get_batch_samples`.

        Evaluation has no window: there a batch is divided by its own counts.
        """
        in_window = isinstance(num_items_in_batch, Counts)
        counts = num_items_in_batch if in_window else None
        logits, ids, mask = None, inputs["input_ids"], inputs["attention_mask"]
        if self._reader is not None and not return_outputs:
            hidden = self._reader.read(model, ids, mask)
            found = self.distiller.outcome_from_hidden(hidden, self._reader.head, inputs, counts)
        else:
            logits = causal_logits(model, ids, mask)
            found = self.distiller.outcome(logits, inputs, counts)
        loss = found.loss
        if in_window:
            self._record(found.terms, found.factor, mask.sum())
            # data parallelism averages the gradients, and these are to add
            loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    @cached_property
    def _reader(self) -> HiddenReader | None:
        """How to read the student's hidden states; None where its logits are needed.

        Parameters that are sharded over processes are whole only inside the model's own forward; and a gradient made on
        the way forward has not been scaled yet, which float16 needs.
        """
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if is_sharded or self.args.fp16 or not self.distiller.can_read_hidden:
            return None
        return HiddenReader.of(self.accelerator.unwrap_model(self.model))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the raw terms to the line of a training step; a term that is not finite ends the training there."""
        if "loss" in logs:
            logs = {**logs, **self._drain()}
        if isinstance(self.train_dataset, StreamedData):
            self.state.epoch = None  # a stream has no end; what stands there counts from the last resume
        super().log(logs, start_time)
        self._check_finite(logs)

    def _check_finite(self, metrics: Mapping[str, float]) -> None:
        for name in [name for name in metrics if name.startswith("kd/")] + ["ce", "kd"]:
            if not math.isfinite(metrics.get(name, 0.0)):
                checkpoint = last_checkpoint(Path(self.args.output_dir))
                raise XTokenError(
                    f"step {self.state.global_step}: {name} is {metrics[name]}, so the training was ended. The last "
                    f"checkpoint is {checkpoint or 'none'}. Look for a learning rate that is too high, or a half-"
                    "precision dtype that overflows."
                )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The Trainer's own, but not about a tied weight: it is there under its other name."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        missing = [name for name in load_result.missing_keys if name in named]
        there = {id(weight) for name, weight in named.items() if name not in missing}
        unknown = [name for name in load_result.missing_keys if id(named.get(name)) not in there]
        super()._issue_warnings_after_load(type(load_result)(unknown, load_result.unexpected_keys))

    def _record(self, terms: Terms, factor: Tensor, tokens: Tensor) -> None:
        """Adds a micro-batch to the sums of the next line, on the device."""
        sums = {"tokens": tokens, "batches": torch.ones_like(factor), "factor": factor.detach()}
        for name, term in {"": terms.cross_entropy, **terms.teachers}.items():
            parts = {"total": term.total.detach(), "count": term.count, **term.metrics}
            sums.update({f"{name}\t{part}": value for part, value in parts.items()})
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        before = sums["factor"] if self._largest_factor is None else self._largest_factor
        self._largest_factor = torch.maximum(before, sums["factor"])

    def _drain(self) -> dict[str, float]:
        """The metrics since the last line; the one place where the log waits for the device."""
        if self._largest_factor is None:
            return {}
        self._sums = dict(sorted(self._sums.items()))  # the same order in every process, whatever came first in each
        flat = torch.stack([value.float() for value in self._sums.values()])
        flat = self.accelerator.reduce(flat, reduction="sum")
        largest = self.accelerator.gather(self._largest_factor.float().reshape(1)).max()
        sums = dict(zip([*self._sums, "largest factor"], torch.cat([flat, largest.reshape(1)]).tolist(), strict=True))
        now, before = time.perf_counter(), self._last_log
        self._sums, self._largest_factor, self._last_log = {}, None, now
        return {**_means(sums, self.distiller.teachers), "tokens_per_second": sums["tokens"] / max(now - before, 1e-9)}


class _Iterated(IterableDataset[Any]):
    """A stream as a DataLoader wants it."""

    def __init__(self, data: StreamedData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


def _means(sums: Mapping[str, float], teachers: Iterable[OnlineTeacher]) -> dict[str, float]:
    """What the log shows, from the sums over its interval."""
    ce = _ratio(sums["\ttotal"], sums["\tcount"])
    kd = 0.0
    metrics: dict[str, float] = {}
    overall: dict[str, tuple[float, float]] = {}
    for teacher in teachers:
        own = {key.partition("\t")[2]: value for key, value in sums.items() if key.startswith(f"{teacher.name}\t")}
        total, count, dropped = own.pop("total"), own.pop("count"), own.pop(DROPPED)
        kd += teacher.weight * _ratio(total, count)
        metrics[f"kd/{teacher.name}"] = _ratio(total, count)
        shares = {name: (value, count) for name, value in own.items()} | {"kept_chunks": (count, count + dropped)}
        for name, (part, whole) in shares.items():
            metrics[f"{name}/{teacher.name}"] = _ratio(part, whole)
            had = overall.get(name, (0.0, 0.0))
            overall[name] = (had[0] + part, had[1] + whole)
    if not metrics:
        return {"ce": ce}
    factor = _ratio(sums["factor"], sums["batches"])
    shown = {"ce": ce, "kd": kd, "kd_ce_ratio": _ratio(kd, ce), "kd_factor": factor}
    shown["kd_factor_max"] = sums["largest factor"]
    return {**shown, **{name: _ratio(*parts) for name, parts in overall.items()}, **metrics}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _scored_tokens(batch: Mapping[str, Any]) -> Tensor:
    """How many labels have a predecessor to predict them."""
    return (batch["labels"][:, 1:] != IGNORED_LABEL).sum()


def _n_chunks(batch: Mapping[str, Any], teacher: OnlineTeacher) -> int:
    """How many chunks a teacher has in a batch, read off a shape."""
    return int(batch["teachers"][teacher.side]["index"]["student_starts"].shape[0]) - 1


def _head_width(model: nn.Module) -> int:
    head = model.get_output_embeddings()
    return int(model.config.vocab_size if head is None else head.weight.shape[0])


def _check_arguments(args: TrainingArguments) -> None:
    if args.label_smoothing_factor:
        raise XTokenError("label_smoothing_factor has no effect here: the loss is not the Trainer's")
    if args.n_gpu > 1:
        raise XTokenError(
            f"this process sees {args.n_gpu} GPUs, and the Trainer would run them as DataParallel, which cannot split "
            "these batches. Start one process a GPU (accelerate launch), or set CUDA_VISIBLE_DEVICES to one."
        )


def _check_dataset(dataset: Any, teachers: Sequence[OnlineTeacher]) -> None:
    sides = getattr(dataset, "sides", None)
    for teacher in teachers:
        if sides is not None and teacher.side not in sides:
            raise XTokenError(f"the data was not prepared for the tokenizer of teacher {teacher.name!r}")
