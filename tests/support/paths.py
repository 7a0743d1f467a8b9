"""Where things are."""

import pathlib

REPOSITORY = pathlib.Path(__file__).parents[2]
