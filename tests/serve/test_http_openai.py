"""The official `openai` client works unchanged."""

import asyncio

import openai
import pytest

from tests.serve.http_parts import chat, data_url, encoded, image_part, picture, running

QUESTION = [{"role": "user", "content": "What is this?"}]


@pytest.fixture(scope="module")
def server(http_engine):
    with running(http_engine, api_key="sesame") as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0, timeout=30) as client:
        yield client


def test_a_plain_answer_is_the_engines(client, http_engine):
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=12)
    expected = http_engine.answer("What is this?", max_new_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == expected.prompt_tokens + len(expected.token_ids)
    assert answer.model == "tiny" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")


def test_a_streamed_answer_is_the_plain_one(client):
    options = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 12}
    plain = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == plain.choices[0].finish_reason and not any(reasons[:-1])
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens and not chunks[-1].choices
    assert {chunk.usage for chunk in chunks[:-1]} == {None} and len({chunk.id for chunk in chunks}) == 1


def test_several_images_in_order(client, http_engine):
    first, second = picture(1), picture(2)
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": data_url(encoded(first))}},
        {"type": "text", "text": "with"},
        {"type": "image_url", "image_url": {"url": data_url(encoded(second)), "detail": "high"}},
    ]
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=12
    )
    parts = [
        {"type": "text", "text": "Compare"},
        {"type": "image", "image": first},
        {"type": "text", "text": "with"},
        {"type": "image", "image": second},
    ]
    expected = http_engine.answer([{"role": "user", "content": parts}], max_new_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens_details.image_tokens == 8  # 4 patches each


def test_the_second_question_about_an_image_pays_for_its_own_tokens(client):
    def ask(text):
        content = [image_part(77), {"type": "text", "text": text}]
        return client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=2
        ).usage

    assert ask("What?").prompt_tokens_details.cached_tokens == 0
    assert ask("Which colour?").prompt_tokens_details.cached_tokens >= 4


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client, http_engine, stream):
    options = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 6}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=3, stream=stream)
    parts = answer if stream else [answer]
    tokens = [
        token for part in parts if part.choices[0].logprobs for token in part.choices[0].logprobs.content
    ]
    expected = http_engine.answer("What is this?", max_new_tokens=6, logprobs=True, top_logprobs=3)
    assert [token.logprob for token in tokens] == pytest.approx([each.logprob for each in expected.logprobs])
    assert [token.token for token in tokens] == [each.token for each in expected.logprobs]
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob  # greedy
        assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_an_answer_can_be_sent_back_as_it_came(client):
    first = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=4)
    messages = [*QUESTION, first.choices[0].message, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=4)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    whole = first.choices[0].message.model_dump()
    client.chat.completions.create(model="tiny", messages=[*QUESTION, whole], max_tokens=4)


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(client):
    def ask(seed):
        answer = client.chat.completions.create(model="tiny", messages=QUESTION, seed=seed, max_tokens=24)
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_every_sampling_option_reaches_the_engine(client, http_engine):
    options = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "top_p": 0.9, "seed": 3}
    extra = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.3}
    answer = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0.8,
        max_completion_tokens=20,
        logit_bias={"40": 3},
        stop=["zzz", "yyy"],
        extra_body={**extra, "min_tokens": 12},
        **options,
    )
    expected = http_engine.answer(
        "What is this?",
        min_new_tokens=12,
        do_sample=True,
        temperature=0.8,
        max_new_tokens=20,
        logit_bias={40: 3},
        stop=("zzz", "yyy"),
        **options,
        **extra,
    )
    assert answer.choices[0].message.content == expected.text


def test_tiny_temperatures_are_greedy_and_a_tiny_top_p_is_taken(client):
    options = {"model": "tiny", "messages": QUESTION, "max_tokens": 8}
    greedy = client.chat.completions.create(**options, temperature=0).choices[0].message.content
    for tiny in ({"temperature": 1e-6}, {"temperature": 1, "top_p": 1e-6}):
        assert client.chat.completions.create(**options, **tiny).choices[0].message.content == greedy


def test_stop_strings_end_an_answer(client):
    options = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    options |= {"logit_bias": {"2": -100}}
    whole = client.chat.completions.create(**options).choices[0].message.content
    stop = whole[5:7]
    cut = client.chat.completions.create(**options, stop=stop)
    assert cut.choices[0].message.content == whole.split(stop)[0]
    assert cut.choices[0].finish_reason == "stop"


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "llavit"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_errors_come_as_the_clients_exceptions(server, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert missing.value.code == "model_not_found" and "'tiny'" in missing.value.message
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=QUESTION, n=2)
    assert bad.value.param == "n" and "1 is the only value" in bad.value.message
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="tiny", messages=QUESTION)
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()


def test_a_prompt_that_is_too_long_says_how_long_it_may_be(client):
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 600}])
    assert long.value.code == "context_length_exceeded" and "512" in long.value.message


async def _ask_together(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0) as client:
        bodies = [chat(f"Question {number}", image_part(number), max_tokens=6) for number in range(6)]
        return await asyncio.gather(*(client.chat.completions.create(**body) for body in bodies)), bodies


def test_the_asynchronous_client_together_gets_what_each_gets_alone(server, client):
    answers, bodies = asyncio.run(_ask_together(server.url))
    for answer, body in zip(answers, bodies, strict=True):
        alone = client.chat.completions.create(**body)
        assert answer.choices[0].message.content == alone.choices[0].message.content
