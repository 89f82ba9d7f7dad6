"""Tiny products go through oneDNN in this folder's tests, where `common.fast` would leave them to torch."""

import pytest

from common.fast import products


@pytest.fixture(scope="package", autouse=True)
def every_product_is_large():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SMALL", 0)
        yield
