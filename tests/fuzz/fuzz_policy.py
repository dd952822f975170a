"""Skip settings and the choice of layers, against a plain statement of the rule."""

from __future__ import annotations

import fractions
import math
import random

import numpy as np
from mutate import main

from first_cpp.errors import FirstCppError, SkipError
from first_cpp.skip import check_layers, choose_layers, layers_for_share, parse_skip, skip_from_text

ODD = [None, "auto", "AUTO", b"auto", True, False, float("nan"), float("inf"), -0.0, 10**400, 1j, {}, {"a": 1}, object(),
       [[]], [None], "0.3", np.float32(0.3), np.float64("nan"), np.int8(-1), np.array([1, 2]), np.array(0.5), np.array([0.5]),
       range(3), (1, 1), [10**30], fractions.Fraction(1, 3), ["1"], (i for i in (2, 0))]  # fmt: skip


def expected_setting(value):
    """What a share or list means, in plain terms; SkipError for neither."""
    if isinstance(value, list):
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
        return tuple(sorted(value)) if whole and len(set(value)) == len(value) else SkipError
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return SkipError
    return float(value) if 0 <= value < 1 else SkipError


def result_of(function, *args):
    try:
        return function(*args)
    except SkipError:
        return SkipError


def check_setting(rng: random.Random) -> None:
    kinds = [
        lambda: rng.uniform(-0.5, 1.5),
        lambda: rng.randint(-2, 3),
        lambda: [rng.randint(-1, 6) for _ in range(rng.randrange(5))],
        lambda: [rng.choice([0, 1, 1.0, True, "1", None]) for _ in range(rng.randrange(3))],
        lambda: rng.choice([0.0, 1.0, math.nextafter(1, 0), math.nextafter(0, 1), 5e-324]),
    ]
    value = rng.choice(kinds)()
    assert result_of(parse_skip, value) == expected_setting(value), value
    odd = rng.choice(ODD)
    parsed = result_of(parse_skip, odd)  # any other exception is a finding
    if parsed is not SkipError:
        assert parse_skip(parsed) == parsed


def check_share(rng: random.Random) -> None:
    n_layer = rng.randint(1, 300)
    wanted = rng.randrange(n_layer)
    # the share that names a number of layers means that number, stored as float32 or not
    assert layers_for_share(wanted / n_layer, n_layer) == wanted
    assert layers_for_share(float(np.float32(wanted / n_layer)), n_layer) == wanted
    share = rng.random()
    nearest = fractions.Fraction(share) * n_layer
    count = result_of(layers_for_share, share, n_layer)
    if count is SkipError:
        assert nearest >= n_layer - fractions.Fraction(5001, 10000)
    else:
        assert abs(count - nearest) <= fractions.Fraction(5001, 10000)
        assert 0 <= count < n_layer


def check_choice(rng: random.Random) -> None:
    n_layer = rng.randint(1, 60)
    keep = [rng.choice([0.0, 0.5, rng.random(), rng.random()]) for _ in range(n_layer)]
    skippable = [rng.random() < 0.8 for _ in range(n_layer)]
    share = rng.random()
    chosen = result_of(choose_layers, keep, share, skippable)
    count = result_of(layers_for_share, share, n_layer)
    if SkipError in (chosen, count):
        assert chosen is count
        return
    assert len(chosen) == min(count, sum(skippable))
    assert list(chosen) == sorted(set(chosen))
    for out in chosen:
        assert skippable[out]
        for kept in set(range(n_layer)) - set(chosen):
            assert not skippable[kept] or (keep[out], out) < (keep[kept], kept)
    if chosen:
        assert (result_of(check_layers, chosen, n_layer) is SkipError) == (len(chosen) == n_layer)


def check_text(rng: random.Random) -> None:
    text = "".join(rng.choice("0123456789.,[]+-eE xnautofi\u00b2\u0663\0") for _ in range(rng.randrange(12)))
    try:
        parsed = skip_from_text(text)
    except FirstCppError:
        return
    assert parse_skip(parsed) == parsed


def run(seconds: float, seed: int) -> int:
    from mutate import fuzz

    return fuzz(lambda rng: rng.choice([check_setting, check_share, check_choice, check_text])(rng), seconds, seed)


if __name__ == "__main__":
    main("skip settings", run)
