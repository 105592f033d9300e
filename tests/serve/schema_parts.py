"""Requests that schemathesis makes up. Only slow tests import this: schemathesis takes seconds."""

import collections

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

NOT_HERE = [
    # A schema cannot say which base64 is an image, nor which name the model has: valid by schema is not yet valid.
    positive_data_acceptance,
    # Methods that are not there are tried by test_http_bad.py.
    unsupported_method,
]


def operations(url):
    """The operations of a server's OpenAPI document, by method and path."""
    found = [result.ok() for result in schemathesis.openapi.from_url(url).get_all_operations()]
    return {f"{each.method.upper()} {each.path}": each for each in found}


def try_out(operation, kind, examples):
    """Send requests that schemathesis draws, positive or negative; give how often each status came."""
    statuses, mode = collections.Counter(), GenerationMode(kind)

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
