"""Questions that training draws from, in the place of the one that the original always asks.

Those of the original stand in `lgjax.text.conversation`. Source: spec/training_and_data.md 6.6.
"""

from __future__ import annotations

REFERRING: tuple[str, ...] = (
    "Locate {t}.",
    "Where is {t}? Mark it.",
    "Outline {t} in the picture.",
    "Show me the region of {t}.",
    "Give the box and mask of {t}.",
    "Point out {t}.",
    "Segment the thing described as {t}.",
    "Which pixels belong to {t}?",
    "Ground the phrase {t}.",
    "Find {t} and return its region.",
    "Mark the area covered by {t}.",
)
"""Ask where the thing is that a text names; `.format(t=text)`. The answer is a bare <seg>."""

BRIEF: tuple[str, ...] = (
    "Sum up this picture in one sentence.",
    "What does the picture show, in short?",
    "Caption this image.",
    "Say briefly what is visible.",
    "Give a one-line account of the scene.",
    "Describe the scene in few words.",
    "Write a short caption.",
    "State the main content of the image.",
    "What is happening here? Keep it short.",
    "Tell me quickly what you see.",
    "Provide a brief caption.",
)
"""Ask for a caption."""

GROUNDING_SUFFIXES: tuple[str, ...] = (
    "(with grounding)",
    "with regions",
    "Also mark every object you mention.",
    "Attach a box and mask to each thing you name.",
    "Ground each noun phrase of the reply.",
    "Link every mentioned object to its region.",
    "Return regions for the phrases you use.",
    "Show where each mentioned item is.",
    "Add the location of each object named.",
    "Include regions for all objects in the answer.",
    "Mark the mentioned things in the image.",
    "Every phrase should come with its region.",
    "Give box and mask along with the text.",
)
"""Put behind a question to ask for an answer with grounded phrases; the first is the original's."""

REGION: tuple[str, ...] = (
    "Describe the object <obj> .",
    "What is the object <obj> ?",
    "Name the object <obj> .",
    "In a few words, what is the object <obj> ?",
    "Give a short phrase for the object <obj> .",
    "How would you refer to the object <obj> ?",
    "Caption the object <obj> .",
    "Tell me about the object <obj> in brief.",
    "Identify the object <obj> .",
    "Say what the object <obj> looks like.",
    "Provide a brief label for the object <obj> .",
    "Which thing is the object <obj> ?",
    "Summarise the object <obj> .",
    "Write a referring phrase for the object <obj> .",
)
"""Ask what a region is; "<obj>" stands where its visual prompt goes, with a space on both sides."""
