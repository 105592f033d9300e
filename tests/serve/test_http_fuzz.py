"""Broken image files, thousands of them: each gets an answer or a 400, and the server goes on."""

import asyncio
import collections
import random

import psutil
import pytest

from tests.serve.http_parts import chat, client, data_url
from tests.serve.image_fuzz import broken, real_images

# Pillow says of broken files what is odd about them; that is what they are for.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


async def post_all(engine, images, at_once=4):
    """Ask about each of the images; give statuses, and the first body of each 5xx."""
    statuses, failures = collections.Counter(), []
    waiting = iter(images)
    async with client(engine, max_new_tokens=1) as http:

        async def worker():
            for number, data in waiting:
                part = {"type": "image_url", "image_url": {"url": data_url(data)}}
                answer = await http.post("/v1/chat/completions", json=chat(part, max_tokens=1))
                statuses[answer.status_code] += 1
                if answer.status_code not in (200, 400):
                    failures.append((number, answer.text))
                elif answer.status_code == 400:
                    error = answer.json()["error"]
                    assert error["param"] and error["message"].startswith("messages[0].content[0]"), error

        await asyncio.gather(*(worker() for _ in range(at_once)))
    return statuses, failures


def fuzz(engine, cases, seed=0):
    files, rng = real_images(), random.Random(seed)
    statuses, failures = asyncio.run(
        post_all(engine, ((number, broken(files, rng)) for number in range(cases)))
    )
    assert not failures, failures[:5]
    assert statuses.total() == cases and engine.stats().failed == 0
    return statuses


def test_every_whole_file_is_answered(http_engine):
    files = real_images()
    statuses, failures = asyncio.run(post_all(http_engine, enumerate(files)))
    assert not failures
    assert statuses == {200: len(files) - 1, 400: 1}  # greys of 32-bit floats, whose white nobody knows


def test_three_hundred_broken_files(http_engine):
    statuses = fuzz(http_engine, 300, seed=1)
    assert statuses[200] > 30 and statuses[400] > 30


@pytest.mark.slow
def test_six_thousand_broken_files(http_engine):
    process = psutil.Process()
    fuzz(http_engine, 200, seed=2)
    before = process.memory_info().rss
    statuses = fuzz(http_engine, 6000, seed=3)
    assert statuses[200] > 600 and statuses[400] > 600
    assert process.memory_info().rss - before < 400_000_000
