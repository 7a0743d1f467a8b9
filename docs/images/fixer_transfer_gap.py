"""Draws fixer_transfer_gap.svg, the picture of the README, from the report of the digits experiment.

In the repository:

    python -m advjax.main --config=configs/digits_fixer.py
    python docs/images/fixer_transfer_gap.py workdirs/digits_fixer
"""

import pathlib
import re
import sys

from advjax.evaluation.report import read_report
from advjax.reporting.plots.accuracy import accuracy_per_attack


def main(workdir: str) -> None:
    """Writes the plot of the run with fixers, on white, beside this file."""
    report = read_report(pathlib.Path(workdir, "report.json"))
    svg = accuracy_per_attack(report._replace(rows=[row for row in report.rows if row["run"] == "fixer"]))
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    white = f'<rect width="{size[1]}" height="{size[2]}" fill="#ffffff"/>'
    pathlib.Path(__file__).with_suffix(".svg").write_text(svg.replace("<defs>", f"{white}\n <defs>", 1))


if __name__ == "__main__":
    main(sys.argv[1])
