"""Which images are held out: decided by a hash of each name, so that nothing has to be
remembered.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ddpm_lib.data.names import Names


def name_hashes(names: Names, seed: int) -> np.ndarray:
    """Hash each name: float64 (n,), uniform in [0, 1), the same on every machine."""
    salt = f"split {seed}".encode()
    words = [
        hashlib.blake2b(names.raw(i), digest_size=8, key=salt).digest() for i in range(len(names))
    ]
    return (np.frombuffer(b"".join(words), dtype="<u8") >> np.uint64(11)).astype(
        np.float64
    ) * 2.0**-53


def hold_out(
    names: Names,
    labels: np.ndarray | None,
    groups: np.ndarray | None,
    held_out: float | int,
    seed: int = 0,
) -> np.ndarray:
    """Choose the held-out images, class by class.

    Args:
        names: One name per image.
        labels: int64 (n,) or None.
        groups: int64 (n,): images of one number stay together; None: each on its own.
        held_out: A float in (0, 1): the fraction, each image decided by its own hash. An int: the
            exact number (up to groups), those with the smallest hashes, shared over the classes in
            proportion.
        seed: Another seed, another choice.

    Returns:
        bool (n,), True where held out.

    Raises:
        ValueError: If `held_out` is out of range, or a side would be empty.
    """
    n = len(names)
    exact = isinstance(held_out, int) and not isinstance(held_out, bool)
    if n < 2:
        raise ValueError(
            f"A dataset of {n} image(s) cannot be split. Add images, or train without held-out"
            " images."
        )
    if isinstance(held_out, bool) or not (0 < held_out < (n if exact else 1)):
        raise ValueError(
            f"held_out must be a fraction in (0, 1) or a number of images 1 … {n - 1}; got"
            f" {held_out!r}."
        )
    hashes = name_hashes(names, seed)
    leader = np.arange(n)
    if groups is not None:
        order = np.lexsort((hashes, groups))
        first = np.r_[True, groups[order][1:] != groups[order][:-1]]
        leader[order] = order[first][np.cumsum(first) - 1]
    hashes, kinds = (
        hashes[leader],
        (labels if labels is not None else np.zeros(n, dtype=np.int64))[leader],
    )
    if not exact:
        held = hashes < held_out
    else:
        held = np.zeros(n, dtype=bool)
        for kind, count in _shares(kinds, int(held_out)).items():
            members = np.flatnonzero(kinds == kind)
            held[members[np.lexsort((leader[members], hashes[members]))[:count]]] = True
        held = held[leader] if groups is None else _whole_groups(held, leader)
    if held.all() or not held.any():
        held = np.zeros(n, dtype=bool)
        held[leader == leader[np.argmin(hashes)]] = True
    if held.all():
        raise ValueError("All images are identical: they cannot be split.")
    return held


def joined(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    """Join two ways to group n images: together are those that either puts together, also by way
    of others.

    Args:
        a: int64 (n,), one number per group, or None.
        b: The same.

    Returns:
        int64 (n,), or None where both are.
    """
    if a is None or b is None:
        return b if a is None else a
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(a)
    ends = [np.unique(part, return_inverse=True)[1].reshape(-1) for part in (a, b)]
    offset = n + int(ends[0].max()) + 1
    rows = np.concatenate([np.arange(n), np.arange(n)])
    columns = np.concatenate([n + ends[0], offset + ends[1]])
    size = offset + int(ends[1].max()) + 1
    graph = coo_array((np.ones(2 * n, dtype=np.int8), (rows, columns)), shape=(size, size))
    found: np.ndarray = connected_components(graph, directed=False)[1][:n].astype(np.int64)
    return found


def _whole_groups(held: np.ndarray, leader: np.ndarray) -> np.ndarray:
    """Hold out a whole group when any of it was chosen."""
    chosen = np.zeros(len(held), dtype=bool)
    chosen[leader[held]] = True
    return chosen[leader]


def _shares(kinds: np.ndarray, count: int) -> dict[int, int]:
    """Share `count` over the classes in proportion to their sizes (largest remainder)."""
    classes, sizes = np.unique(kinds, return_counts=True)
    exact = sizes * (count / sizes.sum())
    shares = np.floor(exact).astype(np.int64)
    for k in np.argsort(-(exact - shares), kind="stable")[: count - int(shares.sum())]:
        shares[k] += 1
    return dict(zip(classes.tolist(), shares.tolist()))
