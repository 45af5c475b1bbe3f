"""Plan the forward passes of many requests so that tokens which they share are computed once. Pure functions.

The sequences that the model must read (context and continuation without its last token, which is never an input) form
a tree: few-shot examples of a subject, then a question, then its choices. A subtree that is short enough becomes one
*row*, in which a token attends only to the tokens on its way from the root. The start of a larger subtree becomes a
*prefix*, whose keys and values are computed once and shared by all rows below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from multilora.evaluation.requests import Request

Int32 = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# A shared start below this many tokens is computed again for every row: a forward pass of its own costs more.
MIN_PREFIX = 32
# A tree must save this part of its tokens to become one row: its mask makes attention slower.
MIN_SAVED = 1 / 8


@dataclass(frozen=True)
class Target:
    """A token to score: `token` of request `request`, its `index`-th, is predicted at `position` of the sequence."""

    position: int
    token: int
    request: int
    index: int


@dataclass
class Node:
    """A stretch of tokens between two branches of the tree.

    tokens: of one of the sequences through this node; the node is `tokens[start:end]`, and `start` is a position
    size: number of tokens of the node and everything below it
    """

    tokens: Int32
    start: int
    end: int
    children: list[Node] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True)
class Row:
    """A tree of tokens to be read in one row of a batch.

    tokens, positions, segments: of each token, [tokens]; segments are numbered from 0, parents before children
    parents: of each segment, -1 for the first
    targets: (index in the row, target)
    """

    tokens: Int32
    positions: Ints
    segments: Ints
    parents: list[int]
    targets: list[tuple[int, Target]]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_linear(self) -> bool:
        """Whether every token attends to all tokens before it."""
        return len(self.parents) == 1

    def mask(self) -> Bools:
        """Which tokens (second axis) each token (first axis) attends to, [tokens, tokens]."""
        count = len(self.parents)
        reaches = np.eye(count, dtype=bool)
        for segment, parent in enumerate(self.parents):
            if parent >= 0:
                reaches[segment] |= reaches[parent]
        causal = np.tri(len(self), dtype=bool)
        allowed: Bools = reaches[self.segments][:, self.segments] & causal
        return allowed


@dataclass(frozen=True)
class Prefix:
    """Tokens whose keys and values are shared by the rows behind them; `parent` is the prefix before it."""

    row: Row
    parent: Prefix | None

    @property
    def length(self) -> int:
        """Number of tokens, with those of all parents."""
        return len(self.row) + (self.parent.length if self.parent else 0)


@dataclass(frozen=True)
class Stage:
    """Rows behind the same prefix."""

    prefix: Prefix | None
    rows: list[Row]


def plan_stages(requests: Sequence[Request], *, row_tokens: int, min_prefix: int = MIN_PREFIX) -> list[Stage]:
    """Plan the forward passes of requests; stages with a common prefix follow one another.

    Args:
        requests: of any number
        row_tokens: a subtree with at most this many tokens becomes one row if it saves enough; 0 makes a row of every
            sequence
        min_prefix: minimum tokens of a prefix of its own; with 0 tokens per row and a large value, nothing is shared
            but sequences of which one begins another
    """
    stages: list[Stage] = []
    # Depth first, without recursion: a chain of a thousand prefixes is a possible input.
    stack: list[tuple[Node, Prefix | None]] = [(root, None) for root in reversed(_forest(requests))]
    rows_of: dict[int, list[Row]] = {}
    while stack:
        node, prefix = stack.pop()
        length, fits = node.end - node.start, node.size <= row_tokens
        saved = length * (len(node.children) - 1)
        if not node.children or (fits and saved >= MIN_SAVED * node.size):
            key = id(prefix)
            if key not in rows_of:
                rows_of[key] = []
                stages.append(Stage(prefix, rows_of[key]))
            rows_of[key].append(_row(node))
        elif length >= min_prefix and not fits:
            below = Prefix(_row(node, alone=True), prefix)
            stack += [(child, below) for child in reversed(node.children)]
            rows_of[id(below)] = []
            stages.append(Stage(below, rows_of[id(below)]))
        else:  # not worth it: every child reads it again
            for child in node.children:
                child.size += child.start - node.start
                child.start = node.start
            node.children[0].targets += node.targets
            stack += [(child, prefix) for child in reversed(node.children)]
    return stages


def _forest(requests: Sequence[Request]) -> list[Node]:
    """Return the roots of the tree of all sequences."""
    arrays = [np.asarray(request.context + request.continuation[:-1], dtype=">i4") for request in requests]
    order = sorted(range(len(arrays)), key=lambda index: arrays[index].tobytes())  # big-endian: in order of the ids
    roots: list[Node] = []
    path: list[Node] = []  # from a root to the current leaf
    previous: Int32 | None = None
    for index in order:
        tokens = arrays[index]
        common = 0 if previous is None else _common(previous, tokens)
        while path and path[-1].start >= common:
            path.pop()
        if path and path[-1].end > common:
            _split(path[-1], common)
        if common < len(tokens):
            leaf = Node(tokens, common, len(tokens))
            (path[-1].children if path else roots).append(leaf)
            path.append(leaf)
        _add_targets(path, requests[index], index)
        previous = tokens
    for node in _bottom_up(roots):
        node.size = node.end - node.start + sum(child.size for child in node.children)
    return roots


def _common(first: Int32, second: Int32) -> int:
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _split(node: Node, position: int) -> None:
    """Split a node in two; the lower part keeps its children and its targets."""
    lower = Node(node.tokens, position, node.end, node.children)
    lower.targets = [target for target in node.targets if target.position >= position]
    node.targets = [target for target in node.targets if target.position < position]
    node.end, node.children = position, [lower]


def _add_targets(path: list[Node], request: Request, number: int) -> None:
    """Add the tokens to score to the nodes in which they are predicted."""
    first = len(request.context) - 1
    nodes = iter(reversed(path))
    node = next(nodes)
    for index in reversed(range(len(request.continuation))):
        position = first + index
        while node.start > position:
            node = next(nodes)
        node.targets.append(Target(position, request.continuation[index], number, index))


def _bottom_up(roots: list[Node]) -> Iterator[Node]:
    order: list[Node] = []
    stack = list(roots)
    while stack:
        node = stack.pop()
        order.append(node)
        stack += node.children
    return reversed(order)


def _row(node: Node, *, alone: bool = False) -> Row:
    """Return the row of a node and everything below it, or of the node alone."""
    tokens, positions, segments = [], [], []
    parents: list[int] = []
    targets: list[tuple[int, Target]] = []
    stack, offset = [(node, -1)], 0
    while stack:
        current, parent = stack.pop()
        segment, length = len(parents), current.end - current.start
        parents.append(parent)
        tokens.append(current.tokens[current.start : current.end].astype(np.int32))
        positions.append(np.arange(current.start, current.end))
        segments.append(np.full(length, segment))
        targets += [(offset + target.position - current.start, target) for target in current.targets]
        offset += length
        if not alone:
            stack += [(child, segment) for child in reversed(current.children)]
    return Row(np.concatenate(tokens), np.concatenate(positions), np.concatenate(segments), parents, targets)
