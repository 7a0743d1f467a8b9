"""The one look of all tables that are printed."""

from collections.abc import Collection

from rich import box
from rich.table import Table
from rich.text import Text


def plain_table(*heads: str, numbers: Collection[str] = ()) -> Table:
    """A table with a line under its heads and no other, in which nothing is cut off.

    Args:
      *heads: of the columns.
      numbers: the heads among them whose columns are aligned to the right.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="")
    for head in heads:
        table.add_column(Text(head), justify="right" if head in numbers else "left", overflow="fold")
    return table
