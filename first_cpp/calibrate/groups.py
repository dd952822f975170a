"""Groups of prompts that may want sets of layers of their own: by their task, or by what the probes read of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MOST_TASKS = 6
"""More tasks than these are too many to search for each: k-means joins what is alike."""
CLUSTERS = 4
ROUNDS = 50


def groups_of(tasks: Sequence[str], read: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """The number of each prompt's group, from 0: its task where there are 2 to MOST_TASKS, else a cluster of what is read.

    tasks: [n], empty where unknown. read: float32 [n, m].

    >>> groups_of(["b", "a", "b"], np.zeros((3, 1), np.float32)).tolist()
    [1, 0, 1]
    """
    names = sorted(set(tasks))
    if all(tasks) and 2 <= len(names) <= MOST_TASKS:
        return np.array([names.index(task) for task in tasks])
    return k_means(read, min(CLUSTERS, len(read)))


def k_means(points: npt.NDArray[np.float32], k: int, seed: int = 0) -> npt.NDArray[np.intp]:
    """The cluster of each point, [n]. points: [n, m]. Starts far apart (k-means++), ends when nothing moves.

    >>> k_means(np.array([[0.0], [5.0], [0.1], [5.2]], np.float32), 2).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    True
    """
    rng = np.random.default_rng(seed)
    x = points.astype(np.float64)
    centres = x[[rng.integers(len(x))]]
    while len(centres) < k:
        nearest = _distances(x, centres).min(axis=1)
        total = float(nearest.sum())
        chances = nearest / total if total > 0 else np.full(len(x), 1 / len(x))
        centres = np.vstack([centres, x[rng.choice(len(x), p=chances)]])
    labels = np.full(len(x), -1)
    for _ in range(ROUNDS):
        found = _distances(x, centres).argmin(axis=1)
        if (found == labels).all():
            break
        labels = found
        for cluster in set(labels.tolist()):
            centres[cluster] = x[labels == cluster].mean(axis=0)
    return labels


def _distances(x: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared, [n, k]."""
    found: npt.NDArray[np.float64] = np.maximum(
        (x**2).sum(axis=1)[:, None] - 2 * x @ centres.T + (centres**2).sum(axis=1)[None], 0
    )
    return found
