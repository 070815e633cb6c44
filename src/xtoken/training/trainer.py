"""`XTokenTrainer`: transformers' Trainer with a distillation loss and counts that are exact.

The Trainer keeps what users know it for: checkpoints, resume, trackers, progress. Laws: cross-entropy is divided by the
number of scored tokens and each teacher's loss by the number of chunks that take part in it, over the whole
accumulation window and all processes, and dynamic factors and adaptive weights are those of the step before, so
gradients do not depend on how a batch is cut into micro-batches and processes; a number that is not finite ends the
training before the optimizer sees it; what a resumed run needs is in the checkpoint, so it goes on to the bit. Waiting:
a step waits for the device once, for its sums; the loss from hidden states also once a teacher and once more, a loss
without a fast version once a micro-batch of several blocks; where gradients are measured, twice more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from xtoken.errors import DivergedError, XTokenError
from xtoken.losses.cross_entropy import IGNORED_LABEL
from xtoken.teachers.causal import HiddenReader, causal_logits
from xtoken.teachers.confidence import Adaptive
from xtoken.teachers.online import OnlineTeacher, check_head
from xtoken.training.callbacks import JsonLines, LossBar, StopRequest
from xtoken.training.collator import Collator
from xtoken.training.data import PreparedData
from xtoken.training.distiller import Counts, Distiller, KdWeight, Outcome, Weighing, chunk_count
from xtoken.training.failure import save_failure
from xtoken.training.learnable import LearnableProjections
from xtoken.training.mixture import EpochSampler, MixedData
from xtoken.training.output import FAILURE, last_checkpoint
from xtoken.training.packing import PackedData
from xtoken.training.pushes import gradient_of, measure, steps_between
from xtoken.training.sharding import place
from xtoken.training.streaming import StreamedData
from xtoken.training.window import Interval, Window, shown, terms_of

__all__ = ["XTokenTrainer"]

_UNMEASURED = 1.0  # the factor of the teachers' sum before any gradient was measured


class XTokenTrainer(Trainer):
    """Trains a student on text and on what its teachers say of it.

    Logged at every `logging_steps`, to the trackers and to `metrics.jsonl` in the output folder, as means over the
    steps since the last line: `ce` and `kd` (nats per token and per chunk, raw), `kd/NAME` for each teacher,
    `kd_ce_ratio`, `kd_factor` (what the teachers' sum was multiplied by, the mean over the steps) and `kd_factor_max`
    (the largest), `uncovered_mass` and `kept_chunks` (shares, also by teacher), with adaptive weights
    `teacher_weight/NAME` and `teacher_score/NAME`, for a learnable W `w_drift/NAME` (the share of its rows' mass that
    has moved), and `tokens_per_second` (the student's, without padding). Where gradients are measured, the mean over
    the steps that were: `gradient_norm/ce`, `gradient_norm/kd` and `gradient_norm/kd/NAME`, of the raw terms, and
    `push_ratio`, that of the teachers' sum over that of the cross-entropy, each times what it was multiplied by.

    Args:
        model: the student, a Hugging Face causal LM.
        teachers: each with its model, loss and weight; none trains by cross-entropy alone.
        args: the Trainer's own. What this trainer cannot honour is refused.
        train_dataset: examples, as `xtoken.training.prepare` makes them, a `PackedData`, `MixedData` or `StreamedData`.
        eval_dataset: likewise; its loss is the same combination, batch by batch.
        student_vocab_size: the size of the student's tokenizer; by default the width of its head.
        kd_weight: of the teachers' sum, or `dynamic`: the cross-entropy over that sum, as the step before had them. The
            first step has those of its own, for one pass more over its batch. Or `gradient`: the norm of the
            cross-entropy's gradient over that of the teachers' sum, of the last step that was measured; 1 where that
            sum does not push, and as it was where no teacher had a chunk or the text no scored token.
        ce_weight: of the cross-entropy.
        adaptive: weighs the teachers by how sure each was of the text of the step before; None takes their own weights.
        kd_warmup: the share of `max_steps` over which the teachers' sum is faded in.
        gradient_norms: the steps from one measurement of the terms' gradients to the next, the first step being one;
            see `xtoken.training.pushes`. None measures nothing, or with `kd_weight` `gradient` every 20 steps.
        callbacks, optimizers: the Trainer's own.

    Raises:
        XTokenError: an argument that would have no effect; a dataset without the tokens of some teacher; gradients are
            to be measured where they are sharded (FSDP, DeepSpeed) or scaled (fp16).
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
        kd_weight: KdWeight | Literal["gradient"] = "dynamic",
        ce_weight: float = 1.0,
        adaptive: Adaptive | None = None,
        kd_warmup: float = 0.0,
        gradient_norms: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = TrainingArguments(output_dir="xtoken-run") if args is None else args
        _check_arguments(args)
        _check_dataset(train_dataset, teachers)
        self._measured_every = steps_between(gradient_norms, kd_weight, teachers)
        vocab_size = _head_width(model) if student_vocab_size is None else student_vocab_size
        check_head(model, vocab_size, "the student")
        args.remove_unused_columns = False  # examples are not dicts of the model's arguments
        if isinstance(train_dataset, StreamedData):
            args.ignore_data_skip = True  # the stream itself goes on where it stood
        use_cache = getattr(model.config, "use_cache", None)
        self._window, self._interval = Window(), Interval()
        self._before: dict[str, float] = {}  # the sums of the last step
        self._ahead: tuple[list[Any], Counts] | None = None  # a window that is to be measured
        # By the last measurement; None where the weight does not go by gradients.
        self._factor = _UNMEASURED if kd_weight == "gradient" else None
        self._gradient_norm: Any = None
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator({teacher.side for teacher in teachers}),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[StepEnd(self), JsonLines(), *(callbacks or [])],
            optimizers=optimizers,
        )
        if use_cache is not None:  # the Trainer turns it off, and the student would be saved so: slow to generate with
            model.config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True  # how releases before loss_is_scaled_for_ga are told the same
        self._replace_progress()
        there = [place(teacher, self.args.device) for teacher in teachers]
        fixed = _UNMEASURED if kd_weight == "gradient" else kd_weight
        self.distiller = Distiller(there, vocab_size, fixed, ce_weight, adaptive)
        self.kd_warmup = kd_warmup
        self._reader = self._reader_of(model)
        self.learnable = LearnableProjections(teachers)
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.learnable.check(
            is_sharded=is_sharded, optimizer=self.optimizer, loads_best=bool(args.load_best_model_at_end)
        )
        self.add_callback(self.learnable)
        if self._measured_every is not None:
            _check_measurable(is_sharded=is_sharded, scales_loss=self._scales_loss)
        self._last_log = time.perf_counter()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, with a group for each learnable W."""
        is_given = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if not is_given:
            self.learnable.add_groups(optimizer)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's own; after a window's last micro-batch the processes agree on the learnable Ws' gradients."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.learnable.reduce(self.accelerator)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.learnable.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.learnable.load(Path(resume_from_checkpoint))

    def _replace_progress(self) -> None:
        """Takes out what prints a dict at every step."""
        self.remove_callback(PrinterCallback)
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(LossBar)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own.

        Raises:
            DivergedError: a loss or a gradient is not finite.
        """
        self._window, self._interval, self._before = Window(), Interval(), {}
        if self._factor is not None:
            self._take_factor(_UNMEASURED)
        self._last_log = time.perf_counter()
        return super().train(*args, **kwargs)

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What is done inside does not count in `tokens_per_second`."""
        began = time.perf_counter()
        yield
        self._last_log += time.perf_counter() - began

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """An order that depends on the seed and the epoch alone."""
        data = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(data, (PreparedData, PackedData, MixedData)):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        processes = self.args.world_size * self.args.gradient_accumulation_steps
        return EpochSampler(data, seed, self.args.train_batch_size * processes)

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
        teachers = self.distiller.teachers
        chunks = [sum((chunk_count(t, batch).to(device) for batch in batches), torch.tensor(0)) for t in teachers]
        flat = torch.stack([tokens.to(device), *(n.to(device) for n in chunks)])
        flat = self.accelerator.reduce(flat, reduction="sum")
        counts = Counts(flat[0], {t.name: n for t, n in zip(teachers, flat[1:], strict=True)})
        if batches and self.distiller.weighs_by_terms and not self._before:
            self._before = self._look(batches, counts)
        every = self._measured_every
        self._ahead = (batches, counts) if batches and every and self.state.global_step % every == 0 else None
        return batches, counts

    def _look(self, batches: Sequence[Any], counts: Counts) -> dict[str, float]:
        """The sums of a window that nothing is known of, by a pass without gradients; the random state is left."""
        window, device = Window(), self.args.device
        self.model.train()
        with torch.no_grad(), _random_state_kept(device):
            for batch in batches:
                inputs = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    found, _ = self._outcome(self.distiller, self.model_wrapped, inputs, counts, None)
                window.add(found, inputs, inputs["attention_mask"].sum())
        return self._reduced(window)

    def begin_step(self) -> None:
        """Measures the gradients of the window at hand where it is due.

        When it is fetched would be too early: a resumed training has not taken up its random state then.
        """
        if self._ahead is None:
            return
        (batches, counts), self._ahead = self._ahead, None
        self.model.train()
        weighing = self._weighing()
        gradient = partial(self._gradient_of, batches, counts, torch.ones_like(weighing.factor))
        pushes = self._window.pushes = measure(gradient, self.distiller, weighing.teachers, self.accelerator)
        # A step without a scored token, or without a chunk, says nothing of the ratio.
        units = torch.stack([counts.tokens, torch.stack(list(counts.chunks.values())).sum()])
        if self._factor is not None and bool((units > 0).all()):
            self._take_factor(pushes.factor)

    def _take_factor(self, factor: float) -> None:
        self._factor = self.distiller.kd_weight = factor

    def _gradient_of(self, batches: Sequence[Any], counts: Counts, one: Tensor, term: Distiller) -> list[Tensor]:
        """This process's part of a window's gradient of one term; with the dropout that the step itself will have.

        The bare model: what wraps it for several processes would add up by itself, and write `.grad`.
        """
        weighing = Weighing(one, {teacher.name: one for teacher in term.teachers})
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

        def losses() -> Iterator[Tensor]:
            for batch in batches:
                inputs = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    found, _ = self._outcome(term, self.model, inputs, counts, weighing)
                yield found.loss

        with _random_state_kept(self.args.device):
            return gradient_of(losses(), parameters)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The micro-batch's share of the window's loss; the counts come from `get_batch_samples`.

        Evaluation has no window: there a batch is divided by its own counts, and weighed by its own terms.
        """
        in_window = isinstance(num_items_in_batch, Counts)
        counts = num_items_in_batch if in_window else None
        weighing = self._weighing() if in_window else None
        found, logits = self._outcome(self.distiller, model, inputs, counts, weighing, needs_logits=return_outputs)
        loss = found.loss
        if in_window:
            self._window.add(found, inputs, inputs["attention_mask"].sum())
            # data parallelism averages the gradients, and these are to add
            loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def _outcome(
        self,
        distiller: Distiller,
        model: nn.Module,
        inputs: Mapping[str, Any],
        counts: Counts | None,
        weighing: Weighing | None,
        needs_logits: bool = False,
    ) -> tuple[Outcome, Tensor | None]:
        """A micro-batch's loss, and the student's logits where they were made."""
        read = inputs["input_ids"], inputs["attention_mask"], inputs.get("position_ids")
        if self._reader is not None and not needs_logits:
            hidden = self._reader.read(model, *read)
            with self.accelerator.autocast():  # which is the model's forward's alone: the head's products are outside
                found = distiller.outcome_from_hidden(hidden, self._reader.head, inputs, counts, weighing)
            return found, None
        logits = causal_logits(model, *read)
        return distiller.outcome(logits, inputs, counts, weighing), logits

    def _weighing(self) -> Weighing:
        """Of the step at hand: that of the sums before it, faded in."""
        if self._window.weighing is not None:
            return self._window.weighing
        if self.distiller.weighs_by_terms:
            terms = terms_of(self._before, self.distiller.teachers)
            found = self.distiller.weigh(terms, terms.counts())
        else:
            found = self.distiller.static_weighing(torch.device("cpu"), torch.float64)
        steps = self.kd_warmup * self.state.max_steps
        faded = min(1.0, (self.state.global_step + 1) / steps) if steps else 1.0
        # All in one tensor, from pinned memory: several small ones would each wait for the device.
        scalars, device = torch.stack([found.factor * faded, *found.teachers.values()]), self.args.device
        if device.type == "cuda":
            scalars = scalars.pin_memory()
        dtype = torch.float32 if device.type == "mps" else torch.float64
        factor, *weights = scalars.to(device, dtype, non_blocking=True).unbind()
        return Weighing(factor, dict(zip(found.teachers, weights, strict=True)))

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._gradient_norm = super()._clip_grad_norm(model)
        return self._gradient_norm

    def end_step(self) -> None:
        """Adds the window up, over all processes; before the optimizer takes its step.

        Raises:
            DivergedError: a sum or the gradient is not finite; what reproduces it was saved.
        """
        window, self._window = self._window, Window()
        norm = self._norm()
        sums = self._reduced(window, self._stop_request())
        wrong = [name for name, value in sums.items() if not math.isfinite(value)]
        # Under a loss scaler an overflow is met by another scale, and the step is left out.
        if not wrong and not self._scales_loss and not math.isfinite(norm):
            wrong = ["gradient"]
        if not wrong and not self._scales_loss and not self.learnable.gradients_are_finite():
            wrong = ["gradient of a projection"]
        if wrong:
            self._fail(window, wrong)
        assert window.weighing is not None
        weights = {name: float(weight) for name, weight in window.weighing.teachers.items()}
        factor = float(window.weighing.factor)
        self._interval.add(sums, self.distiller.ce_weight, factor, weights)
        if window.pushes is not None:
            self._interval.add_pushes(window.pushes, self.distiller.ce_weight, factor)
        # A teacher without a chunk in this step has said nothing of the next one's weights.
        silent = [t.name for t in self.distiller.teachers if not sums[f"{t.name}\tcount"]]
        self._before |= {k: v for k, v in sums.items() if k.partition("\t")[0] not in silent or k not in self._before}

    def _norm(self) -> float:
        """The gradient's norm over all of the student, as the clipping found it; else found now."""
        norm, self._gradient_norm = self._gradient_norm, None
        if norm is None:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else 0.0
        return _as_float(norm)

    @property
    def _scales_loss(self) -> bool:
        """Whether float16's scaler multiplies the loss, so that a gradient that overflows is met by a smaller scale."""
        return bool(self.args.fp16 or self.accelerator.mixed_precision == "fp16")

    def _reduced(self, window: Window, stop: StopRequest | None = None) -> dict[str, float]:
        """A window's sums over all processes, the same in each; the one place where a step waits for the device.

        Args:
            window: of this process.
            stop: what the processes are to agree on, on the same way.
        """
        names, flat = window.flat()
        heard = [] if stop is None else stop.heard()
        sums = self.accelerator.reduce(torch.cat([flat, flat.new_tensor(heard)]), reduction="sum").tolist()
        if stop is not None:
            stop.agree(sums[len(names) :])
        return dict(zip(names, sums[: len(names)], strict=True))

    def _stop_request(self) -> StopRequest | None:
        """What several processes have to agree on; one by itself has not."""
        requests = (callback for callback in self.callback_handler.callbacks if isinstance(callback, StopRequest))
        return next(requests, None) if self.args.world_size > 1 else None

    def _fail(self, window: Window, wrong: Sequence[str]) -> None:
        step = self.state.global_step + 1
        folder = Path(self.args.output_dir) / f"{FAILURE}{step}"
        save_failure(folder, window, step, wrong, self.args.process_index)
        self.save_model(str(folder / "student"), _internal_call=True)
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        advice = (
            "The cross-entropy is finite, so look at the teacher: its dtype, or what it makes of this text."
            if all(
                name.find("\t") > 0 for name in wrong
            )  # a teacher's name stands before the tab, and nothing the text's
            else "Look for a learning rate that is too high, or a half-precision dtype that overflows."
        )
        raise DivergedError(
            f"step {step}: {_said(wrong)} not finite, so the training was ended before the student was changed by it. "
            f"The batches, the numbers of their documents and the student are in {folder}; the last checkpoint is "
            f"{checkpoint or 'none'}. {advice}"
        )

    def exported(self) -> dict[str, Any]:
        """What a checkpoint has to know of the steps before it."""
        known = {"before": self._before, "interval": asdict(self._interval)}
        return known if self._factor is None else {**known, "factor": self._factor}

    def restore(self, exported: Mapping[str, Any]) -> None:
        """Takes up what `exported` gave.

        Raises:
            XTokenError: the weight goes by gradients now, and did not then.
        """
        if self._factor is not None and "factor" not in exported:
            raise XTokenError(
                "the checkpoint knows no factor for kd_weight 'gradient': it was made under another kd_weight. Resume "
                "with that one, or begin anew."
            )
        self._before, self._interval = dict(exported["before"]), Interval(**exported["interval"])
        if self._factor is not None:
            self._take_factor(exported["factor"])

    def _reader_of(self, model: nn.Module) -> HiddenReader | None:
        """How to read the student's hidden states; None where its logits are needed.

        Parameters that are sharded over processes are whole only inside the model's own forward; and a gradient made on
        the way forward has not been scaled yet, which float16 needs.

        Args:
            model: the student before anything wraps it: autocast would round the logits that it is tried by.
        """
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if is_sharded or self._scales_loss or not self.distiller.can_read_hidden:
            return None
        return HiddenReader.of(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the raw terms to the line of a training step, and the loss over all of its steps.

        The Trainer's own loss forgets, on resume, the steps between the last line and the checkpoint.
        """
        if "loss" in logs:
            logs = {**logs, **self._drain(), **self.learnable.logged()}
        if isinstance(self.train_dataset, StreamedData):
            self.state.epoch = None  # a stream has no end; what stands there counts from the last resume
        super().log(logs, start_time)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The Trainer's own, but not about a tied weight: it is there under its other name."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        missing = [name for name in load_result.missing_keys if name in named]
        there = {id(weight) for name, weight in named.items() if name not in missing}
        unknown = [name for name in load_result.missing_keys if id(named.get(name)) not in there]
        super()._issue_warnings_after_load(type(load_result)(unknown, load_result.unexpected_keys))

    def _drain(self) -> dict[str, float]:
        """The metrics since the last line."""
        interval, self._interval = self._interval, Interval()
        if not interval.steps:
            return {}
        now, before = time.perf_counter(), self._last_log
        self._last_log = now
        found = shown(interval, self.distiller.teachers, is_adaptive=self.distiller.adaptive is not None)
        return {**found, "tokens_per_second": interval.sums["tokens"] / max(now - before, 1e-9)}


class StepEnd(TrainerCallback, ExportableState):
    """Tells the trainer when a step begins and when its gradients are whole, and keeps what it knows in checkpoints.

    Args:
        trainer: whose.
    """

    def __init__(self, trainer: XTokenTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.begin_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.end_step()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__)
        if kept is not None and state.global_step:
            self.trainer.restore(kept["attributes"])

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": self.trainer.exported()}


class _Iterated(IterableDataset[Any]):
    """A stream as a DataLoader wants it."""

    def __init__(self, data: StreamedData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """What is drawn inside is drawn again afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _as_float(norm: Any) -> float:
    """A gradient norm, whole where it is a sharded one."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _said(wrong: Sequence[str]) -> str:
    """Names of sums as a message has them."""
    names = []
    for name in wrong:
        teacher, tab, part = name.partition("\t")
        names.append(
            name if not tab else f"{part} of teacher {teacher!r}" if teacher else f"the cross-entropy's {part}"
        )
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _scored_tokens(batch: Mapping[str, Any]) -> Tensor:
    """How many labels have a predecessor to predict them."""
    return (batch["labels"][:, 1:] != IGNORED_LABEL).sum()


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


def _check_measurable(*, is_sharded: bool, scales_loss: bool) -> None:
    if is_sharded:
        raise XTokenError(
            "gradients cannot be measured term by term under FSDP or DeepSpeed, which add them up and let them go on "
            "their own way: leave out gradient_norms and take another kd_weight than 'gradient', or use DDP"
        )
    if scales_loss:
        raise XTokenError(
            "gradients cannot be measured in fp16, where they are lost unless the loss is scaled: use bf16, or leave "
            "out gradient_norms and take another kd_weight than 'gradient'"
        )


def _check_dataset(dataset: Any, teachers: Sequence[OnlineTeacher]) -> None:
    sides = getattr(dataset, "sides", None)
    for teacher in teachers:
        if sides is not None and teacher.side not in sides:
            raise XTokenError(f"the data was not prepared for the tokenizer of teacher {teacher.name!r}")
