import pytest

from llavit import Engine


@pytest.fixture(scope="session")
def http_engine(tiny):
    """An engine over a tiny random model that writes bytes; no test closes it."""
    built = tiny.build()
    with Engine(built.model.eval(), built.processor, max_batch=4, max_queue=8) as engine:
        yield engine
