"""`Fans`: which tokens of one side begin with the same pieces and end one piece later.

A student token of N teacher pieces stands against the other student tokens of N pieces that share its first N - 1: they
differ in the last piece alone, which one row of the teacher's scores for all of them. Found on the device, by a walk
down a trie of as many steps as the deepest fan has pieces, so that nothing is read back. Law: the tokens of a fan have
different last pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken.projection.tries import NO_NODE, Trie

__all__ = ["FEWEST", "Fans", "fans_of"]

Ints = NDArray[np.int64]

FEWEST = 2  # candidates; one alone is not told from anything


@dataclass(frozen=True)
class Fans:
    """The fans of one side's tokens, in the other side's pieces. A and B are the sizes of the two.

    Attributes:
        keys: int64 [N], rising: (node above + 1) * B + piece, as in `Trie`.
        spelling: int64 [B], of each id of the other side the one that stands for all of its bytes.
        starts: int64 [N + 1], where each node's candidates begin; a node has none, or two or more.
        tokens: int64 [M], candidates of this side, node by node.
        pieces: int64 [M], the last piece of each, an id of the other side.
        depth: the most pieces that lead to a fan.
        widest: the most candidates of a fan.
    """

    keys: Tensor
    spelling: Tensor
    starts: Tensor
    tokens: Tensor
    pieces: Tensor
    depth: int
    widest: int

    def find(self, path: Tensor, path_starts: Tensor) -> tuple[Tensor, Tensor]:
        """The fan that the tokens of each chunk but its last lead to.

        Args:
            path: int64 [n], the other side's tokens.
            path_starts: int64 [K+1], chunk by chunk.

        Returns:
            int64 [K] each: the place of its first candidate, and how many there are, 0 for no fan. A chunk of one
            token has none.
        """
        leads = path_starts.diff() - 1
        node, found = torch.full_like(leads, NO_NODE), (leads > 0) & (leads <= self.depth)
        for step in range(self.depth):
            goes_on = found & (leads > step)
            at = torch.where(goes_on, path_starts[:-1] + step, 0)
            wanted = (node + 1) * len(self.spelling) + self.spelling[path[at]]
            place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
            is_there = self.keys[place] == wanted
            node, found = torch.where(goes_on & is_there, place, node), found & (is_there | ~goes_on)
        node = node.clamp(min=0)
        begins, ends = self.starts[node], self.starts[(node + 1).clamp(max=len(self.keys))]
        return begins, torch.where(found, ends - begins, 0)

    def candidates(self, begins: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """`width` tokens and last pieces from each place on, int64 [K, width]; past the fan's size they are any."""
        at = begins.unsqueeze(1) + torch.arange(width, device=begins.device)
        at = at.clamp(max=max(len(self.tokens) - 1, 0))
        return self.tokens[at], self.pieces[at]


def fans_of(trie: Trie) -> Fans:
    """The fans of a trie's tokens.

    Tokens of equal pieces are no candidates: nothing here tells them apart.
    """
    size, n_nodes = len(trie.spelling), len(trie.keys)
    above = trie.keys // size - 1
    depth, at = np.ones(n_nodes, np.int64), above
    while (has_above := at != NO_NODE).any():
        depth, at = depth + has_above, np.where(has_above, above[at], NO_NODE)
    node, token = np.repeat(np.arange(n_nodes), np.diff(trie.member_starts)), trie.members
    ends_next = np.diff(trie.piece_starts)[token] == depth[node] + 1
    node, token = node[ends_next], token[ends_next]
    piece = trie.pieces[trie.piece_starts[token] + depth[node]]
    _, inverse, counts = np.unique(node * size + piece, return_inverse=True, return_counts=True)
    node, token, piece = (array[counts[inverse] == 1] for array in (node, token, piece))
    is_fan = np.bincount(node, minlength=n_nodes) >= FEWEST
    node, token, piece = (array[is_fan[node]] for array in (node, token, piece))
    starts = np.searchsorted(node, np.arange(n_nodes + 1))
    arrays = {"keys": trie.keys, "spelling": trie.spelling, "starts": starts}
    arrays |= {"tokens": _padded(token), "pieces": _padded(piece)}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    deepest, widest = (int(x.max(initial=0)) for x in (depth[is_fan], np.diff(starts)))
    return Fans(**tensors, depth=deepest, widest=widest)


def _padded(candidates: Ints) -> Ints:
    """Never empty, so that a place can be looked up where there is no fan at all."""
    return candidates if len(candidates) else np.zeros(1, np.int64)
