"""Which loss a teacher teaches by, and how it is made from two vocabularies.

The names of the config become modules of `xtoken.losses` here and nowhere else. `auto` asks the audit; W is built once
for a pair of tokenizers and kept under their fingerprints.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from xtoken.config import TeacherConfig
from xtoken.coverage import audit
from xtoken.errors import XTokenError
from xtoken.losses import ALM, GOLD, HKL, PKL, ULD, PartitionKL, PathKL, SameTokenizerKL, StrictKL
from xtoken.losses.alm import ALM_TEMPERATURE
from xtoken.losses.divergence import Divergence
from xtoken.losses.fast.ranked import RANKS
from xtoken.losses.strict import STRICT_TOP_K
from xtoken.projection import (
    PathTries,
    Projection,
    build_projection,
    build_tries,
    relaxed_partition,
    strict_partition,
)
from xtoken.projection.build import DECAY, MAX_PIECES, RULES
from xtoken.projection.tries import TRIE_RULES
from xtoken.teachers.online import DistillationLoss
from xtoken.tokens import Vocabulary

__all__ = ["Objective", "choose_loss", "make_objective", "projection_for", "tries_for"]

log = logging.getLogger(__name__)

RANKED = ("gold", "h-kl", "uld")  # the losses that sort
PROJECTED = ("p-kl", "h-kl")  # those made from W
DIVERGENT = ("same", "p-kl")  # those that compare two whole vectors by one divergence
TOPPED = ("p-kl", "strict")  # those that can be kept to the teacher's k most probable tokens
MERGELESS = {
    "same": "its chunks are single tokens",
    "path-kl": "it reads every token of a chunk by itself",
    "strict": "its chunks are single tokens",
    "alm": "it compares the likelihoods of whole chunks",
    "partition-kl": "how many tokens a chunk has decides what is compared",
}


@dataclass(frozen=True)
class Objective:
    """A teacher's loss.

    Attributes:
        loss: the module.
        name: as in the config, but never auto.
        reason: why this one.
        projection: the W it was made from, where there is one.
    """

    loss: DistillationLoss
    name: str
    reason: str
    projection: Projection | None = None


def choose_loss(asked: str, student: Vocabulary, teacher: Vocabulary) -> tuple[str, str]:
    """The loss's name and the reason for it.

    Args:
        asked: as in the config; `auto` takes `same` for one tokenizer and what the audit recommends for two.
        student, teacher: the vocabularies.

    Raises:
        XTokenError: `same` was asked for two different tokenizers.
    """
    is_same = student.fingerprint == teacher.fingerprint
    if asked == "same" and not is_same:
        raise XTokenError(
            f"loss 'same' needs one tokenizer for both, but the student's, {student.name!r}, and the teacher's, "
            f"{teacher.name!r}, differ; use 'auto'"
        )
    if asked != "auto":
        return asked, "the config asks for it"
    if is_same:
        return "same", "teacher and student have one tokenizer"
    report = audit(student, teacher)
    return report.recommended_loss, report.reason


def make_objective(config: TeacherConfig, student: Vocabulary, teacher: Vocabulary, cache: Path | None) -> Objective:
    """The loss of one teacher.

    Args:
        config: its section of the run's config.
        student, teacher: the vocabularies.
        cache: the folder that keeps W; None builds it anew.

    Raises:
        XTokenError: a setting that has no effect on this loss.
    """
    name, reason = choose_loss(config.loss, student, teacher)
    if name not in TOPPED and config.top_k is not None:
        raise XTokenError(
            f"top_k has no effect on the loss {name!r} ({reason}): it belongs to {', '.join(TOPPED)}. Leave it out."
        )
    if name != "alm" and config.likelihood_temperature is not None:
        raise XTokenError(
            f"likelihood_temperature has no effect on the loss {name!r} ({reason}): it belongs to alm. Leave it out."
        )
    if name not in RANKED and config.ranks is not None:
        raise XTokenError(
            f"ranks has no effect on the loss {name!r} ({reason}): it belongs to {', '.join(RANKED)}. Leave it out."
        )
    if name in MERGELESS and config.merge is not None:
        raise XTokenError(f"merge has no effect on the loss {name!r} ({reason}): {MERGELESS[name]}. Leave it out.")
    if name != "p-kl" and config.projection.learnable:
        raise XTokenError(
            f"projection.learnable has no effect on the loss {name!r} ({reason}): it belongs to p-kl. Leave it out."
        )
    if name not in PROJECTED and config.projection.file is not None:
        raise XTokenError(
            f"projection.file has no effect on the loss {name!r} ({reason}): it belongs to {', '.join(PROJECTED)}. "
            "Leave it out."
        )
    if name not in DIVERGENT and config.divergence is not None:
        raise XTokenError(
            f"divergence has no effect on the loss {name!r} ({reason}): it belongs to {', '.join(DIVERGENT)}. Leave it "
            "out."
        )
    projection = None
    if name in PROJECTED:
        file = config.projection.file
        given = None if file is None else Projection.load(Path(file).expanduser(), student, teacher)
        projection = given or projection_for(student, teacher, cache)
    return Objective(_loss(name, config, student, teacher, cache, projection), name, reason, projection)


def _loss(
    name: str,
    config: TeacherConfig,
    student: Vocabulary,
    teacher: Vocabulary,
    cache: Path | None,
    projection: Projection | None,
) -> DistillationLoss:
    merge = config.merge or "chain"
    ranks = RANKS if config.ranks is None else None if config.ranks == "all" else config.ranks
    divergence = Divergence(config.divergence or "forward", config.jsd_beta)
    if name == "same":
        return SameTokenizerKL(student.size, divergence)
    if name == "uld":
        return ULD(student.size, teacher.size, merge, ranks)
    if name == "gold":
        return GOLD(strict_partition(student, teacher), merge, ranks=ranks)
    if name == "path-kl":
        return PathKL(tries_for(student, teacher, cache))
    if name == "strict":
        return StrictKL(strict_partition(student, teacher), config.top_k or STRICT_TOP_K)
    if name == "alm":
        return ALM(student.size, teacher.size, config.likelihood_temperature or ALM_TEMPERATURE)
    if name == "partition-kl":
        return PartitionKL(strict_partition(student, teacher), tries_for(student, teacher, cache))
    assert projection is not None
    if name == "h-kl":
        return HKL(relaxed_partition(student, teacher, projection), merge, ranks=ranks)
    return PKL(projection, merge, config.top_k, learnable=config.projection.learnable, divergence=divergence)


def projection_for(student: Vocabulary, teacher: Vocabulary, cache: Path | None) -> Projection:
    """W of a pair of tokenizers, from the cache where it is there and sound.

    Args:
        student, teacher: the vocabularies.
        cache: the folder; None builds W anew.
    """
    rules = f"{DECAY} {MAX_PIECES} {RULES}"
    return _kept("W", rules, Projection.load, build_projection, student, teacher, cache and cache / "projections")


def tries_for(student: Vocabulary, teacher: Vocabulary, cache: Path | None) -> PathTries:
    """The tries of a pair of tokenizers, likewise."""
    rules = f"{RULES} {TRIE_RULES}"
    return _kept("the tries", rules, PathTries.load, build_tries, student, teacher, cache and cache / "tries")


class _Artifact(Protocol):
    def save(self, path: Path) -> None: ...


_A = TypeVar("_A", bound=_Artifact)


def _kept(
    what: str,
    rules: str,
    load: Callable[[Path, Vocabulary, Vocabulary], _A],
    build: Callable[[Vocabulary, Vocabulary], _A],
    student: Vocabulary,
    teacher: Vocabulary,
    folder: Path | None,
) -> _A:
    """An artifact of a pair, from a folder where it is there and sound.

    Args:
        what: its name in the log.
        rules: what it depends on besides the tokenizers.
        load, build: how it is had.
        student, teacher: the vocabularies.
        folder: of the cache; None builds it anew.
    """
    if folder is None:
        return build(student, teacher)
    content = f"{student.fingerprint} {teacher.fingerprint} {rules}"
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            return load(path, student, teacher)
        except XTokenError as error:
            log.warning("the cached file of %s is not usable and is built again: %s", what, error)
    built = build(student, teacher)
    built.save(path)
    log.info("built %s for %s and %s: %s", what, student.name, teacher.name, path)
    return built
