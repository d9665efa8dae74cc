from tests.transfer.published import local_collection, published  # noqa: F401
