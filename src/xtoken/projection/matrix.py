"""W: the sparse matrix that carries a distribution over student tokens into the teacher's vocabulary.

`Projection` is W as CSR with the fingerprints of both tokenizers and the recipe it was built by. Law: entries are
positive, and every row sums to 1 or is empty (a token that W cannot carry). It is saved as safetensors and refuses to
load for any other pair of tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken.errors import XTokenError
from xtoken.projection.artifact import Kind, damaged, load_artifact, save_artifact
from xtoken.tokens import Vocabulary

__all__ = ["Projection"]

KIND = Kind("xtoken-projection", 1, "projection", "build one with `xtoken project`")
_ROW_SUM_SLACK = 1e-5  # float32 rounding of four terms


@dataclass(frozen=True)
class Projection:
    """W as compressed sparse rows.

    Attributes:
        indptr: int64 [V_S + 1], where each student token's entries begin.
        cols: int32 [nnz], teacher ids, rising within a row.
        values: float32 [nnz], positive.
        shape: (V_S, V_T), the sizes of the two tokenizers.
        student_fingerprint, teacher_fingerprint: of the tokenizers; empty for a matrix made by hand.
        recipe: how it was built, and counts of what happened to the rows.
    """

    indptr: NDArray[np.int64]
    cols: NDArray[np.int32]
    values: NDArray[np.float32]
    shape: tuple[int, int]
    student_fingerprint: str = ""
    teacher_fingerprint: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        v_s, v_t = self.shape
        if len(self.indptr) != v_s + 1 or self.indptr[0] != 0 or self.indptr[-1] != len(self.cols):
            raise XTokenError(f"W's row pointers do not fit {v_s} rows and {len(self.cols)} entries")
        if len(self.cols) != len(self.values) or np.any(np.diff(self.indptr) < 0):
            raise XTokenError("W's rows are malformed: pointers fall, or columns and values differ in number")
        if len(self.cols) and (self.cols.min() < 0 or self.cols.max() >= v_t):
            raise XTokenError(f"W names teacher id {self.cols.max()}, outside the teacher's vocabulary of {v_t}")
        if not np.all((self.values > 0) & np.isfinite(self.values)):
            raise XTokenError("W holds an entry that is not positive and finite")
        sums = self.row_sums()
        bad = np.flatnonzero((np.abs(sums - 1) > _ROW_SUM_SLACK) & (sums != 0))
        if len(bad):
            raise XTokenError(f"row {bad[0]} of W sums to {sums[bad[0]]:.6f}, not to 1 or 0")

    @classmethod
    def from_coo(
        cls,
        rows: NDArray[Any],
        cols: NDArray[Any],
        values: NDArray[Any],
        shape: tuple[int, int],
        *,
        student_fingerprint: str = "",
        teacher_fingerprint: str = "",
        recipe: Mapping[str, Any] | None = None,
    ) -> Projection:
        """W from triplets in any order.

        Args:
            rows, cols: integers [nnz], student and teacher ids; no pair twice.
            values: floats [nnz].
            shape: (V_S, V_T).
            student_fingerprint, teacher_fingerprint, recipe: as for the class.
        """
        rows, cols = np.asarray(rows, np.int64), np.asarray(cols, np.int32)
        if len(rows) and (rows.min() < 0 or rows.max() >= shape[0]):
            raise XTokenError(f"W names student id {rows.max()}, outside the student's vocabulary of {shape[0]}")
        order = np.lexsort((cols, rows))
        cells = (rows * shape[1] + cols)[order]
        if np.any(cells[1:] == cells[:-1]):
            twice = int(cells[1:][cells[1:] == cells[:-1]][0])
            raise XTokenError(f"W names student id {twice // shape[1]} with teacher id {twice % shape[1]} twice")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).astype(np.int64)
        values = np.asarray(values, np.float32)[order]
        return cls(indptr, cols[order], values, shape, student_fingerprint, teacher_fingerprint, dict(recipe or {}))

    def to_coo(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(rows, cols, values), each [nnz], ordered by row and then column."""
        rows = np.repeat(np.arange(self.shape[0], dtype=np.int64), np.diff(self.indptr))
        return rows, self.cols.astype(np.int64), self.values

    def row_sums(self) -> NDArray[np.float64]:
        """float64 [V_S]: 1 for a row that is carried, 0 for an empty one."""
        running = np.concatenate([[0.0], np.cumsum(self.values, dtype=np.float64)])
        sums: NDArray[np.float64] = running[self.indptr[1:]] - running[self.indptr[:-1]]
        sums[np.diff(self.indptr) == 0] = 0.0
        return sums

    def reachable(self) -> NDArray[np.bool_]:
        """bool [V_T]: the teacher tokens that some student token is carried to."""
        mask = np.zeros(self.shape[1], bool)
        mask[self.cols] = True
        return mask

    def save(self, path: str | Path) -> None:
        """Writes W as safetensors, to a temporary name first, so that a broken write leaves no file."""
        prints = self.student_fingerprint, self.teacher_fingerprint
        more = {"shape": json.dumps(self.shape), "recipe": json.dumps(self.recipe, sort_keys=True)}
        save_artifact(path, KIND, {"indptr": self.indptr, "cols": self.cols, "values": self.values}, prints, more)

    @classmethod
    def load(cls, path: str | Path, student: Vocabulary | None = None, teacher: Vocabulary | None = None) -> Projection:
        """Reads a saved W, for the pair of tokenizers it was built for.

        Args:
            path: the file.
            student, teacher: the vocabularies it will be used with; one that is given is checked.

        Raises:
            XTokenError: no such file, or not one of ours.
            FingerprintMismatchError: it was built for another tokenizer; the message says which side differs.
        """
        tensors, metadata = load_artifact(path, KIND, student, teacher)
        try:
            v_s, v_t = json.loads(metadata["shape"])
            arrays = tensors["indptr"], tensors["cols"], tensors["values"]
            recipe = json.loads(metadata["recipe"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, KIND, error) from None
        return cls(*arrays, (v_s, v_t), metadata["student_fingerprint"], metadata["teacher_fingerprint"], recipe)
