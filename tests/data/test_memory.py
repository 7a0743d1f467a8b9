"""Images that do not fit into memory are refused before they are decoded."""

import pytest

from advjax import data
from advjax.types import UserError


@pytest.mark.parametrize("image_size", [100_000, 2**63, -1])
def test_senseless_sizes_are_refused_at_once(image_size):
    with pytest.raises(UserError, match="image_size is"):
        data.load("digits", "train", image_size=image_size)


def test_what_would_fill_the_memory_is_refused_before_it_is_decoded(monkeypatch):
    # A machine with one mebibyte.
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 256, "SC_PAGE_SIZE": 4096}.get)
    with pytest.raises(
        UserError, match=r"359 images of digits at 64 x 64 pixels need 1\.4 of 0\.0 GiB|need 0\.0 of 0\.0"
    ):
        data.load("digits", "test", image_size=64)
    source = data.open_source("digits", "test")
    assert data.read_all(source).image_shape == (8, 8, 1)
