"""Batching of items into few shapes, each with its own compiled program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from plug_jax.errors import PlugError
from plug_jax.inference.placement import PlacedModel, power_of_two

Item = TypeVar("Item")
Given = TypeVar("Given")


def batches(
    model: PlacedModel,
    items: Sequence[Item],
    size: Callable[[Item], tuple[int, ...]],
    batch_size: int,
) -> Iterator[tuple[list[int], list[Item]]]:
    """Batches of items of similar length, with their indices.

    `size` gives an item's number of texts, then lengths: only items with equal numbers of texts
    share a batch, of at most `batch_size` texts. A batch is padded to a power of two with copies of
    its last item.
    """
    by_size = sorted(range(len(items)), key=lambda place: size(items[place]))
    for texts, alike in itertools.groupby(by_size, lambda place: size(items[place])[0]):
        most = model.rows(max(1, batch_size // texts))
        while places := list(itertools.islice(alike, most)):
            full = [items[place] for place in places]
            full += full[-1:] * (min(power_of_two(len(full)), most) - len(full))
            yield places, full


def numbered(given: Sequence[Given], prepare: Callable[[Given], Item]) -> list[Item]:
    """`prepare` of each; with several, the message of a PlugError says which one."""
    items = []
    for number, one in enumerate(given):
        try:
            items.append(prepare(one))
        except PlugError as error:
            if len(given) == 1:
                raise
            raise PlugError(f"number {number} (from 0): {error}") from error
    return items
