"""The attacks are usable alone."""

import subprocess
import sys

HEAVY = ("flax", "orbax", "tensorflow_datasets", "tensorflow", "ml_collections", "torch")


def test_importing_the_attacks_loads_no_other_framework():
    code = f"import sys, advjax.attacks; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
