"""JSON from clients whose misspelt fields are refused, though all of OpenAI's fields are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """JSON that a client sends; a field that it does not have is refused.

    `ignored` names fields of OpenAI's that change no answer here; `idle` those that would have to change it,
    each with the values at which they do not: with others they are refused.
    """

    model_config = ConfigDict(extra="forbid")
    ignored: ClassVar[frozenset[str]] = frozenset()
    idle: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, values in cls.idle.items():
            if data.get(name) is not None and data[name] not in values:
                raise PydanticCustomError(
                    "unsupported", "this server does not support '{name}'; leave it out", {"name": name}
                )
        return {name: value for name, value in data.items() if name not in cls.ignored | cls.idle.keys()}


REQUEST_IGNORED = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
    | {"prompt_cache_retention", "prediction", "reasoning_effort", "verbosity", "parallel_tool_calls"}
)
REQUEST_IDLE = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
# of an answer that is sent back as it came, by this server or through OpenAI's client
MESSAGE_IGNORED = frozenset({"name", "refusal", "annotations", "phrases", "region_mask"})
MESSAGE_IDLE = {"tool_calls": ([],), "function_call": (), "audio": ()}
