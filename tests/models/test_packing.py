import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_r1.models.packing import BUCKET_SLACK, pack

rows_of_tokens = st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=8)


@settings(max_examples=300)
@given(rows=rows_of_tokens, share=st.booleans())
def test_every_token_is_found_where_the_layout_says(rows, share):
    width = max(map(len, rows)) + 1
    ids = torch.tensor([row + [7] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    layout = pack(ids, lengths, share_prefixes=share)
    for row, tokens in enumerate(rows):
        node = layout.node[row]
        assert (node[len(tokens) :] == -1).all()
        node = node[: len(tokens)]
        assert layout.token_ids[0, node].tolist() == tokens
        assert layout.position_ids[0, node].tolist() == list(range(len(tokens)))


@settings(max_examples=300)
@given(rows=rows_of_tokens)
def test_tokens_are_shared_exactly_where_their_whole_past_is_equal(rows):
    width = max(map(len, rows)) + 1
    ids = torch.tensor([row + [7] * (width - len(row)) for row in rows])
    layout = pack(ids, torch.tensor([len(row) for row in rows]))
    if layout.expand is None:
        assert layout.token_ids.shape[1] == sum(map(len, rows))
        return
    prefixes = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert layout.token_ids.shape[1] == len(prefixes)
    by_node = {}
    for row, tokens in enumerate(rows):
        for i in range(len(tokens)):
            node = int(layout.node[row, i])
            assert by_node.setdefault(node, tuple(tokens[: i + 1])) == tuple(tokens[: i + 1])


@settings(max_examples=300)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_buckets_cover_the_stream_with_little_padding(sizes):
    ids = torch.arange(len(sizes) * 40).view(len(sizes), 40)  # nothing in common
    layout = pack(ids, torch.tensor(sizes))
    lengths = [length for bucket in layout.buckets for length in bucket.lengths]
    assert lengths == sorted((s for s in sizes if s), reverse=True)
    assert layout.cu_lengths.diff().tolist() == lengths
    start = 0
    for bucket in layout.buckets:
        assert bucket.start == start
        assert bucket.width <= BUCKET_SLACK * min(bucket.lengths)
        start += bucket.tokens
