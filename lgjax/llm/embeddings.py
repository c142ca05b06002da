"""Texts as vectors, by any endpoint that speaks OpenAI's embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from lgjax.llm.client import Stopped, check_key, fault_words

try:
    import openai
except ImportError as error:
    raise ImportError(f'endpoints need the openai client: pip install "lgjax[annotate]" ({error})') from error

_AT_ONCE = 128  # texts in a request


def embed(texts: Sequence[str], model: str, base_url: str | None = None) -> Float64[np.ndarray, "n d"]:
    """The vector of each text, of length 1. `base_url` None is OpenAI's; the key is in OPENAI_API_KEY.

    Raises:
        ValueError: no key in the environment.
        Stopped: the endpoint cannot be reached, refuses, or answers something else.
    """
    check_key()
    name = f"endpoint {base_url or 'of OpenAI'}"
    vectors: list[Sequence[float]] = []
    with openai.OpenAI(base_url=base_url, max_retries=4) as api:
        for first in range(0, len(texts), _AT_ONCE):
            some = list(texts[first : first + _AT_ONCE])
            try:
                answer = api.embeddings.create(model=model, input=some, encoding_format="float")
            except openai.APIError as error:
                raise Stopped(f"{name}: {fault_words(error)}") from error
            found = [one.embedding for one in sorted(answer.data or (), key=lambda one: one.index)]
            if len(found) != len(some):
                raise Stopped(f"{name}: {len(found)} vectors for {len(some)} texts")
            vectors += found
    if len({len(vector) for vector in vectors}) > 1:
        raise Stopped(f"{name}: vectors of different lengths")
    out = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
    return out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-12)
