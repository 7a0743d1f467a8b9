"""Keeps compiled programs on disk, for later processes."""

import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache

DEFAULT_FOLDER = "~/.cache/advjax/xla"


def use_compilation_cache(
    folder: str | os.PathLike[str] = DEFAULT_FOLDER, *, min_compile_seconds: float = 0.05
) -> None:
    """Keeps compiled programs in a folder, so that later processes need not compile them again.

    Compiling takes most of the time of attacks on few images or small networks.  Call this once, before or after other
    programs have been compiled; it applies to all programs of this process, whoever they are from.  The command line
    does it by itself (``--compilation_cache``).

    Example::

        attacks.use_compilation_cache()

    Args:
      folder: created if it does not exist; may be shared by processes and machines of one kind.
      min_compile_seconds: programs that compile faster are not kept.
    """
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_compile_seconds)
    # JAX decides at the first program whether there is a cache.
    compilation_cache.reset_cache()
