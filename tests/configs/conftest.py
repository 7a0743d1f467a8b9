import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from advjax import data
from advjax.cpu import convolution
from advjax.runtime import devices as sharding
from advjax.runtime.devices import Devices


@pytest.fixture(scope="module")
def frugal():
    """Reads each data set only once and uses the convolutions that compile fastest."""
    with pytest.MonkeyPatch.context() as patch, convolution.exact():
        patch.setattr(data, "load", functools.cache(data.load))
        yield


@pytest.fixture
def devices():
    return Devices(Mesh(np.asarray(jax.devices()[:1]), (sharding.AXIS,)), "jit")
