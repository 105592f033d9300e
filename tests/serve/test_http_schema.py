"""Requests that schemathesis makes up from the OpenAPI document: none gets a 5xx or an answer that it does not list."""

import pytest

from tests.serve.http_parts import running

CHAT = "POST /v1/chat/completions"
EXAMPLES = [
    (CHAT, "positive", 400),
    (CHAT, "negative", 600),
    (
        "GET /v1/models/{name}",
        "positive",
        100,
    ),  # any text is a right one for the path: nothing can be wrong there
    ("GET /v1/models", "positive", 1),
    ("GET /health", "positive", 1),
    ("GET /metrics", "positive", 1),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def operations(http_engine):
    from tests.serve import schema_parts

    with running(http_engine, max_new_tokens=4, timeout=20) as server:
        yield schema_parts.operations(f"{server.url}/openapi.json")
    assert http_engine.stats().failed == 0


def test_the_document_has_these_operations_and_no_others(operations):
    assert set(operations) == {name for name, _, _ in EXAMPLES}


@pytest.mark.parametrize(("name", "mode", "examples"), EXAMPLES)
def test_no_request_gets_a_5xx_or_an_answer_that_is_not_listed(operations, name, mode, examples):
    from tests.serve.schema_parts import try_out

    statuses = try_out(operations[name], mode, examples)
    assert statuses.total() >= examples * 0.9 and max(statuses) < 500
    if (name, mode) == (CHAT, "positive"):
        assert statuses[200] >= 20, statuses
