"""How the programs of this package end."""

import sys
from collections.abc import Callable, Sequence

from advjax.types import UserError


def run_command(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    """Calls ``main(arguments)``; mistakes of the user end in one line on stderr and exit code 2."""
    try:
        main(arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
