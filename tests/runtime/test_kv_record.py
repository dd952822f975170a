"""KvRecord against the plain list that it stands for: two sets of layers a position, left out and without KV."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from first_cpp.runtime.kv_record import KvRecord

SETS = st.frozensets(st.integers(0, 3))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 6), SETS),
        st.tuples(st.just("append keeping"), st.integers(0, 6), SETS),
        st.tuples(st.just("truncate"), st.integers(0, 12), SETS),
        st.tuples(st.just("lose"), st.just(0), SETS),
    )
)


@given(STEPS, SETS)
def test_is_the_list_it_stands_for(steps, asked):
    record, plain = KvRecord(), []
    for step, number, layers in steps:
        if step == "append":
            record.append(len(plain) + number, layers)
            plain += [(layers, layers)] * number
        elif step == "append keeping":
            record.append(len(plain) + number, layers, layers & {3})
            plain += [(layers, layers & {3})] * number
        elif step == "truncate":
            record.truncate(number)
            del plain[number:]
        else:
            record.lose(layers)
            plain = [(left_out, lacks | layers) for left_out, lacks in plain]
        assert record.end == len(plain)
        like = next((i for i, (left_out, lacks) in enumerate(plain) if left_out != asked or not lacks <= asked), len(plain))
        readable = next((i for i, (_, lacks) in enumerate(plain) if not lacks <= asked), len(plain))
        assert record.copy().evaluated_like(asked) == like
        assert record.readable_with(asked) == readable
