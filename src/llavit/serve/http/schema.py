"""The body of a chat request: OpenAI's fields that make sense here, three more, and nothing else.

Types are strict (no "1" for 1, no true for 1), numbers finite, lists and strings bounded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

LONGEST_CONVERSATION = 2048
"""Most messages, and most parts of a message."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where an image is: a data URL, or what the server has been told to allow."""

    url: str = Field(description="data:image/png;base64,...; http(s) and file URLs if the server allows them")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="makes no difference here")


class ImagePart(_Strict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=LONGEST_CONVERSATION)]


class Message(_Strict):
    """One message. Fields that only an answer has are allowed empty, so that an answer can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("as_text")] | Annotated[Parts, Tag("as_parts")],
        Discriminator(lambda value: "as_text" if isinstance(value, str) else "as_parts"),
    ]
    name: str | None = Field(None, max_length=256, description="makes no difference here")
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(None, max_length=0)

    @field_validator("content", mode="before")
    @classmethod
    def _text_or_parts(cls, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise ValueError("expected a string or a list of parts")
        return value

    @model_validator(mode="after")
    def _only_users_show_images(self) -> Message:
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.content):
            raise ValueError(
                f"a message of role {self.role} has an image; images go into a message of role user"
            )
        return self


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="counts of tokens come in one more chunk at the end")
    include_obfuscation: bool | None = Field(None, description="makes no difference here")


class ResponseFormat(_Strict):
    """Text is the only format."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """A question about images and text, or a conversation, as OpenAI's chat completions.

    Extensions: `top_k`, `min_p`, `repetition_penalty`, with the meaning they have in transformers; `min_tokens`, as
    vLLM's.
    """

    model: str = Field(max_length=1024)
    messages: list[Message] = Field(min_length=1, max_length=LONGEST_CONVERSATION)
    max_completion_tokens: int | None = Field(None, ge=1, description="most tokens of the answer")
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens")
    min_tokens: int | None = Field(None, ge=0, description="no end-of-turn token before so many tokens")
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 takes the likeliest token each time; 1 if not given"
    )
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = Field(None, max_length=1024, description="by token id")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: (
        Annotated[str, Field(min_length=1, max_length=1024)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=16)]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = Field(None, ge=1, le=1, description="1 is the only value")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=1024, description="makes no difference here")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="makes no difference here")

    @field_validator("n", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if value is not None and not (type(value) is int and value == 1):
            raise ValueError("1 is the only value here; send the request several times, with different seeds")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if value is not None and not (
            isinstance(texts, list)
            and len(texts) <= 16
            and all(isinstance(text, str) and 0 < len(text) <= 1024 for text in texts)
        ):
            raise ValueError(
                "expected a string or up to 16 of them, none empty or longer than 1024 characters"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        most = self.max_completion_tokens or self.max_tokens
        if most and (self.min_tokens or 0) > most:
            raise ValueError(f"min_tokens: expected at most max_tokens, {most}, got {self.min_tokens}")
        return self


NOT_HERE = {
    "tools": "tools are not offered",
    "tool_choice": "tools are not offered",
    "functions": "tools are not offered",
    "function_call": "tools are not offered",
    "audio": "sound is not offered",
    "modalities": "text is the only kind of answer",
    "best_of": "it is not offered; send the request several times, with different seeds",
    "do_sample": "send temperature: 0 for the likeliest token each time",
    "max_new_tokens": "send max_completion_tokens",
}
"""Fields of other servers, with what to do about them."""
