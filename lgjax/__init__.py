"""Grounded visual chat in JAX: answers whose phrases are tied to boxes and masks.

from lgjax import Box, Click, GroundedChat

chat = GroundedChat.load("model")  # made by `lgjax convert`
answer = chat.ask("photo.jpg", "What is the object % doing?", Click(120, 80))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lgjax.infer.answer import Answer, Phrase
    from lgjax.infer.chat import Conversation, GroundedChat
    from lgjax.infer.regions import Again, Box, Click, Mask, Scribble
    from lgjax.infer.request import Options
    from lgjax.infer.stream import Done, Found, Words

_HOMES = {
    "Again": "lgjax.infer.regions",
    "Answer": "lgjax.infer.answer",
    "Box": "lgjax.infer.regions",
    "Click": "lgjax.infer.regions",
    "Conversation": "lgjax.infer.chat",
    "Done": "lgjax.infer.stream",
    "Found": "lgjax.infer.stream",
    "GroundedChat": "lgjax.infer.chat",
    "Mask": "lgjax.infer.regions",
    "Options": "lgjax.infer.request",
    "Phrase": "lgjax.infer.answer",
    "Scribble": "lgjax.infer.regions",
    "Words": "lgjax.infer.stream",
}
__all__ = [
    "Again",
    "Answer",
    "Box",
    "Click",
    "Conversation",
    "Done",
    "Found",
    "GroundedChat",
    "Mask",
    "Options",
    "Phrase",
    "Scribble",
    "Words",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `lgjax --help` need not wait for jax."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lgjax' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
