"""Requests that schemathesis makes up from the OpenAPI document: none gets a 5xx or an answer that it does not list."""

import collections

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from tests.serve.http_parts import running

NOT_HERE = [
    # A schema cannot say which base64 is an image, nor which name the model has: valid by schema is not yet valid.
    positive_data_acceptance,
    # Methods that are not there are tried by test_http_bad.py.
    unsupported_method,
]
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
def document(http_engine):
    with running(http_engine, max_new_tokens=4, timeout=20) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assert http_engine.stats().failed == 0


def operations(document):
    found = [result.ok() for result in document.get_all_operations()]
    return {f"{each.method.upper()} {each.path}": each for each in found}


def try_out(operation, mode, examples):
    """Send requests that schemathesis draws; give how often each status came."""
    statuses = collections.Counter()

    @seed(0)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def send(case):
        if mode == GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body["model"] = "tiny"  # another name is a 404 before the rest is looked at
        response = case.call(timeout=30)
        statuses[response.status_code] += 1
        case.validate_response(response, excluded_checks=NOT_HERE)

    send()
    return statuses


def test_the_document_has_these_operations_and_no_others(document):
    assert set(operations(document)) == {name for name, _, _ in EXAMPLES}


@pytest.mark.parametrize(("name", "mode", "examples"), EXAMPLES)
def test_no_request_gets_a_5xx_or_an_answer_that_is_not_listed(document, name, mode, examples):
    statuses = try_out(operations(document)[name], GenerationMode(mode), examples)
    assert statuses.total() >= examples * 0.9 and max(statuses) < 500
    if (name, mode) == (CHAT, "positive"):
        assert statuses[200] >= 20, statuses
