"""The plan of forward passes scores every token once, and every token sees exactly the tokens before it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora.evaluation.requests import Request
from multilora.evaluation.scoring.batches import batches_of
from multilora.evaluation.scoring.prefix_tree import Stage, plan_stages

# Few different tokens, so that many sequences begin alike.
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
REQUESTS = st.lists(st.builds(Request, TOKENS, TOKENS), min_size=1, max_size=12)


def seen(stage, row, index):
    """The tokens that a token of a row attends to, by position; without sharing, these are those before it."""
    tokens, positions = [], []
    prefix, chain = stage.prefix, []
    while prefix is not None:
        chain.append(prefix.row)
        prefix = prefix.parent
    for prefix_row in reversed(chain):
        tokens += prefix_row.tokens.tolist()
        positions += prefix_row.positions.tolist()
    visible = row.mask()[index]
    tokens += row.tokens[visible].tolist()
    positions += row.positions[visible].tolist()
    assert positions == list(range(len(positions)))
    return tokens


def check(requests, stages):
    scored = set()
    parents = {}
    for stage in stages:
        rows = [(stage, row) for row in stage.rows]
        if stage.prefix is not None:
            above = Stage(stage.prefix.parent, [])
            rows.append((above, stage.prefix.row))
            parents[id(stage.prefix)] = stage.prefix
        for where, row in rows:
            for index, target in row.targets:
                request = requests[target.request]
                text = request.context + request.continuation
                position = len(request.context) + target.index
                assert target.token == text[position]
                assert seen(where, row, index) == text[:position]
                key = (target.request, target.index)
                assert key not in scored
                scored.add(key)
    assert scored == {(n, i) for n, request in enumerate(requests) for i in range(len(request.continuation))}


@settings(max_examples=300, deadline=None)
@given(
    requests=REQUESTS, row_tokens=st.sampled_from([0, 1, 5, 12, 40, 1000]), min_prefix=st.sampled_from([1, 2, 4, 99])
)
def test_every_token_is_scored_once_behind_its_own_context(requests, row_tokens, min_prefix):
    check(requests, plan_stages(requests, row_tokens=row_tokens, min_prefix=min_prefix))


@settings(max_examples=100, deadline=None)
@given(requests=REQUESTS)
def test_without_sharing_no_row_is_a_tree(requests):
    stages = plan_stages(requests, row_tokens=0, min_prefix=2**31)
    assert all(stage.prefix is None and row.is_linear for stage in stages for row in stage.rows)
    check(requests, stages)


@settings(max_examples=100, deadline=None)
@given(requests=REQUESTS, batch_tokens=st.sampled_from([1, 8, 30, 1000]))
def test_batches_contain_every_row_once(requests, batch_tokens):
    for stage in plan_stages(requests, row_tokens=12, min_prefix=2):
        batches = list(batches_of(stage, batch_tokens))
        assert sorted(id(row) for batch in batches for row in batch.rows) == sorted(map(id, stage.rows))
        assert all(len(batch.rows) == 1 or batch.tokens <= batch_tokens for batch in batches)


def test_few_shot_prompts_are_computed_once():
    few_shot = list(range(100, 200))
    requests = [Request([*few_shot, *range(10 * n, 10 * n + 8)], [choice]) for n in range(9) for choice in (1, 2, 3, 4)]
    (stage,) = plan_stages(requests, row_tokens=50)
    assert stage.prefix is not None
    assert len(stage.prefix.row) == 100
    assert [len(row) for row in stage.rows] == [8] * 9  # one forward for all four choices


def test_a_tree_that_saves_little_is_not_worth_a_mask():
    questions = [[7, *range(100 * n, 100 * n + 50)] for n in range(1, 5)]
    requests = [Request([*question, choice], [0, 1]) for question in questions for choice in (1, 2, 3, 4)]
    (stage,) = plan_stages(requests, row_tokens=768)
    # The choices of a question share a row, the questions do not.
    assert [len(row) for row in stage.rows] == [51 + 4 * 2] * 4


def test_a_chain_of_a_thousand_prefixes_is_planned():
    text = np.random.default_rng(0).integers(0, 99, 1001).tolist()
    requests = [Request(text[:n], text[n : n + 1]) for n in range(1, 1001)]
    check(requests[::50], plan_stages(requests[::50], row_tokens=20, min_prefix=2))
    assert sum(len(row.targets) for stage in plan_stages(requests, row_tokens=4000) for row in stage.rows) == 1000
