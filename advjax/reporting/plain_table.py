"""The common style of all printed tables."""

from collections.abc import Collection

from rich import box
from rich.table import Table
from rich.text import Text


def plain_table(*heads: str, numbers: Collection[str] = ()) -> Table:
    """A table ruled only below its header; long cells wrap instead of being cut off.

    Args:
      *heads: column headings.
      numbers: the headings of right-aligned columns.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="")
    for head in heads:
        table.add_column(Text(head), justify="right" if head in numbers else "left", overflow="fold")
    return table
