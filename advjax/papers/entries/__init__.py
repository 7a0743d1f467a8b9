"""One entry for each table and figure of the five papers, in the order in which ``run all`` runs them."""

from collections.abc import Mapping

from advjax.papers.entries import paper_000, paper_001, paper_002, paper_003, paper_004
from advjax.papers.recipe import Entry
from advjax.types import UserError

__all__ = ["ENTRIES", "find"]

_BY_NAME = {
    entry.name: entry for paper in (paper_000, paper_001, paper_002, paper_003, paper_004) for entry in paper.ENTRIES
}
_FIRST = (
    *("004_section3", "004_table1", "004_table2", "004_figure3", "004_figures1_2", "000_table4", "000_figure2"),
    *("003_table1", "001_table1", "000_table2", "001_table4", "003_figure5_one_percent", "003_figure3", "003_figure7"),
    *("001_table8", "001_table7", "003_figure5"),
)
"""Those that tell most for the time that they take."""
ENTRIES: Mapping[str, Entry] = {name: _BY_NAME[name] for name in (*_FIRST, *sorted(_BY_NAME.keys() - set(_FIRST)))}
"""Name of an entry -> the entry."""


_WITHIN = {
    **{"001_figure3": "001_table1", "001_figure4": "001_table1", "001_figure5": "001_table2"},
    **{"001_figure6": "001_table2", "001_figure9": "001_table4", "001_figure10": "001_table6"},
    **{"003_figure4": "003_table1", "004_figure1": "004_figures1_2", "004_figure2": "004_figures1_2"},
}
"""A figure of a paper -> the entry that draws it."""
_NOT_ALONE = {"001_table3": "is in the entries 001_table1 (MNIST) and 001_table2 (CIFAR-10)"}


def find(name: str) -> Entry:
    """An entry by its name, or by that of a figure that it draws.

    Raises:
      UserError: there is no such entry.
    """
    if name in _NOT_ALONE:
        raise UserError(f"{name} {_NOT_ALONE[name]}")
    found = ENTRIES.get(_WITHIN.get(name, name))
    if found is None:
        raise UserError(f"no entry is named {name!r}; there are {', '.join(ENTRIES)}")
    return found
