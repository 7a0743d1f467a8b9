"""Whether the order in which a paper puts its networks is also that of ours, and the leads that its text names."""

import collections
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from advjax.papers.cells import Cell
from advjax.papers.join import Accuracy
from advjax.papers.recipe import Lead

_UNORDERED = ("001_table3", "001_adversarial_epochs")
"""Tables whose rows are one network, attacked several times; and single epochs of adversarial training, between which
accuracy moves more than between networks."""
_ONE_QUESTION = {"002_table2": "002_table2 and 4", "002_table4": "002_table2 and 4"}
"""Table -> the tables that are one comparison together: the networks before and after retraining."""


class Ordering(NamedTuple):
    """The pairs of networks of a table on the same images under the same attack, after as many epochs.

    A pair whose published intervals overlap has no published order, and nothing is asked of ours.  Where the paper does
    not say how many images a number is of, it has no interval, and every difference counts.
    """

    table: str
    dataset: str
    attack: str
    holds: int
    """Pairs in the published order."""
    reversed: int
    """Pairs in the opposite order."""
    undecided: int
    """Pairs whose intervals overlap in ours."""
    unmeasured: int
    """Pairs of which a network has not been measured."""
    indistinct: int
    """Pairs that are none of the above, since their published intervals overlap."""

    @property
    def verdict(self) -> str:
        """In words."""
        found = self._verdict
        return f"{found} so far" if self.unmeasured and (self.holds or self.reversed) else found

    @property
    def _verdict(self) -> str:
        if not (self.holds or self.reversed):
            if self.undecided:
                return "cannot be told: our intervals overlap"
            return "has not been measured" if self.unmeasured else "is not shown by the paper: its intervals overlap"
        if not self.reversed:
            return "holds" if not self.undecided else "holds where it can be told"
        return "does not hold" if self.reversed >= self.holds else "holds in part"


class FoundLead(NamedTuple):
    """A lead that a text names, beside ours."""

    published: Lead
    points: float | None
    """Ours; None if one of the networks has not been measured."""
    interval: tuple[float, float] | None
    """95% interval of ``points`` over test images, as if those of the networks were different ones (Newcombe, "Interval
    estimation for the difference between independent proportions", Statistics in Medicine 1998, method 10)."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.points is None or self.interval is None:
            return "not measured"
        low, high = self.interval
        if low <= 0 <= high:
            return "cannot be told: the interval contains 0"
        if self.points * self.published.points < 0:
            return "reversed"
        return "holds" if low <= self.published.points <= high else "another size, in the same direction"


def leads(cells: Sequence[Cell], published: Sequence[Lead]) -> list[FoundLead]:
    """The leads that a text names, beside ours.

    Args:
      cells: of the entry.
      published: its leads.
    """
    return [_lead(cells, lead) for lead in published]


def _lead(cells: Sequence[Cell], lead: Lead) -> FoundLead:
    known = {
        cell.published.model: cell.ours
        for cell in cells
        if (cell.published.dataset, cell.published.attack) == (lead.dataset, lead.attack)
    }
    leader, behind = known[lead.leader], known[lead.behind]
    if leader is None or behind is None or leader.interval is None or behind.interval is None:
        return FoundLead(lead, None, None)
    points = leader.value - behind.value
    (low, high), (behind_low, behind_high) = leader.interval, behind.interval
    down = math.hypot(leader.value - low, behind_high - behind.value)
    up = math.hypot(high - leader.value, behind.value - behind_low)
    return FoundLead(lead, points, (points - down, points + up))


def orderings(cells: Sequence[Cell]) -> list[Ordering]:
    """The orderings of all tables in which at least two networks are measured, in the order of the cells."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        table, dataset, attack = cell.published.table, cell.published.dataset, cell.published.attack
        if cell.theirs is None or table in _UNORDERED:
            continue
        if epochs := re.search(r":(\d+)ep$", cell.published.training):
            dataset = f"{dataset}, after {epochs[1]} epoch{'s' if epochs[1] != '1' else ''}"
        groups.setdefault((_ONE_QUESTION.get(table, table), dataset, attack), []).append(cell)
    # Several of ours may stand beside one published number, which has no order.
    return [
        _ordering(key, found)
        for key, found in groups.items()
        if len({cell.theirs.value for cell in found if cell.ours and cell.theirs}) > 1
    ]


def _ordering(key: tuple[str, str, str], found: Sequence[Cell]) -> Ordering:
    outcomes = collections.Counter(_outcome(one, other) for one, other in itertools.combinations(found, 2))
    return Ordering(*key, *(outcomes[field] for field in Ordering._fields[len(key) :]))


def _outcome(one: Cell, other: Cell) -> str:
    """The field of `Ordering` that counts a pair; "" for two networks beside the same number."""
    assert one.theirs and other.theirs
    published = one.theirs.value - other.theirs.value
    if not published:
        return ""
    if _overlap(one.theirs, other.theirs):
        return "indistinct"
    if one.ours is None or other.ours is None:
        return "unmeasured"
    if _overlap(one.ours, other.ours) is not False:
        return "undecided"
    return "holds" if published * (one.ours.value - other.ours.value) > 0 else "reversed"


def _overlap(one: Accuracy, other: Accuracy) -> bool | None:
    """Whether two intervals overlap; None if one of them is not known."""
    if one.interval is None or other.interval is None:
        return None
    return max(one.interval[0], other.interval[0]) <= min(one.interval[1], other.interval[1])
