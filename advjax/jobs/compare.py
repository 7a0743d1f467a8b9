"""Comparing finished evaluations of one or more folders."""

import pathlib
from collections.abc import Sequence

from rich.console import Console

from advjax.reporting import comparison


def compare(folders: Sequence[str], preset_folder: str, console: Console) -> None:
    """Prints the accuracies of all models of all folders, and which differ by more than chance.

    Args:
      folders: workdirs.
      preset_folder: folder inside each that the report is in; "" for the workdir itself.
      console: where to print.

    Raises:
      UserError: a folder holds no report.
    """
    found = {
        _label(folder, folders): comparison.read_evaluation(pathlib.Path(folder, preset_folder)) for folder in folders
    }
    comparison.print_comparison(found, console)


def _label(folder: str, folders: Sequence[str]) -> str:
    """Tells the models of several folders apart: the folder's name, or its whole path where names repeat."""
    if len(folders) == 1:
        return ""
    name = pathlib.Path(folder).name
    return folder if [pathlib.Path(other).name for other in folders].count(name) > 1 else name
