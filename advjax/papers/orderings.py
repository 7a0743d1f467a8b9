"""Whether the order in which a paper puts its networks is also that of ours, and the leads that its text names."""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from advjax.papers.cells import Cell
from advjax.papers.join import Accuracy
from advjax.papers.recipe import Lead

_UNORDERED = ("001_table3",)
"""Tables whose rows are one network, attacked several times."""
_ONE_QUESTION = {"002_table2": "002_table2 and 4", "002_table4": "002_table2 and 4"}
"""Table -> the tables that are one comparison together: the networks before and after retraining."""


class Ordering(NamedTuple):
    """The pairs of networks of a table on the same images under the same attack, after as many epochs."""

    table: str
    dataset: str
    attack: str
    holds: int
    """Pairs in the published order."""
    reversed: int
    """Pairs in the opposite order."""
    undecided: int
    """Pairs whose intervals overlap in ours."""
    indistinct: int
    """Pairs, of all the above, whose published intervals overlap: the paper does not show their order itself."""

    @property
    def verdict(self) -> str:
        """In words."""
        if not (self.holds or self.reversed):
            return "cannot be told: all intervals overlap"
        if not self.reversed:
            return "holds" if not self.undecided else "holds where it can be told"
        return "does not hold" if self.reversed >= self.holds else "holds in part"


class FoundLead(NamedTuple):
    """A lead that a text names, beside ours."""

    published: Lead
    points: float | None
    """Ours; None if one of the networks has not been measured."""
    verdict: str
    """In words."""


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
    if leader is None or behind is None:
        return FoundLead(lead, None, "not measured")
    points = leader.value - behind.value
    if _overlap(leader, behind):
        return FoundLead(lead, points, "cannot be told: the intervals overlap")
    return FoundLead(lead, points, "holds" if points * lead.points > 0 else "reversed")


def orderings(cells: Sequence[Cell]) -> list[Ordering]:
    """The orderings of all tables in which at least two networks are measured, in the order of the cells."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        table, dataset, attack = cell.published.table, cell.published.dataset, cell.published.attack
        if cell.ours is None or cell.theirs is None or table in _UNORDERED:
            continue
        if epochs := re.search(r":(\d+)ep$", cell.published.training):
            dataset = f"{dataset}, after {epochs[1]} epoch{'s' if epochs[1] != '1' else ''}"
        groups.setdefault((_ONE_QUESTION.get(table, table), dataset, attack), []).append(cell)
    made = (_ordering(key, found) for key, found in groups.items())
    # Several of ours may stand beside one published number, which has no order.
    return [entry for entry in made if entry.holds + entry.reversed + entry.undecided]


def _ordering(key: tuple[str, str, str], found: Sequence[Cell]) -> Ordering:
    counts = dict.fromkeys(("holds", "reversed", "undecided", "indistinct"), 0)
    for one, other in itertools.combinations(found, 2):
        assert one.ours and other.ours and one.theirs and other.theirs
        published = one.theirs.value - other.theirs.value
        if not published:
            continue
        counts["indistinct"] += _overlap(one.theirs, other.theirs)
        if _overlap(one.ours, other.ours):
            counts["undecided"] += 1
        else:
            counts["holds" if published * (one.ours.value - other.ours.value) > 0 else "reversed"] += 1
    return Ordering(*key, **counts)


def _overlap(one: Accuracy, other: Accuracy) -> bool:
    low, high = one.interval or (one.value, one.value)
    other_low, other_high = other.interval or (other.value, other.value)
    return max(low, other_low) <= min(high, other_high)
