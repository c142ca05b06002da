"""What a language model is told: the rules of annotation, examples of our own, the numbered instances.

Source: spec/training_and_data.md 9.1; the original's texts were never published.
"""

from __future__ import annotations

from collections.abc import Sequence

from lgjax.annotate.reply import write_links
from lgjax.annotate.task import Instance, Link, Task
from lgjax.llm.request import Message

VERSION = 1
SYSTEM = """\
You are an annotator of texts about pictures. You never see the picture. You get a numbered list of the \
things in it, one a line, as number.class: [x1, y1, x2, y2]; the box runs from 0 to 1, from left to right \
and from top to bottom. Then you get a text that somebody wrote about this picture.
Copy the text without changing a single character, and put round brackets around each noun phrase that means \
things of the list, directly followed by square brackets with their number.class, separated by commas.
- Use class, number, position and size to find out which things are meant. A phrase may mean several things \
(groups, plurals), and a thing may be meant by several phrases; mark every mention.
- A phrase has an article or number and its adjectives, at most twelve words, and no other phrase inside.
- Leave unmarked: what is not in the list, what cannot be told apart, abstract nouns, places without a box, \
things that are only supposed or said not to be there, and pronouns.
- Brackets that the text has already stay as they are.
- If nothing fits, copy the text as it is. Write nothing else."""


def _things(*things: tuple[str, tuple[float, float, float, float]]) -> tuple[Instance, ...]:
    return tuple(Instance(k, category, box) for k, (category, box) in enumerate(things))


def _example(
    instances: tuple[Instance, ...], text: str, *phrases: tuple[str, tuple[int, ...]]
) -> tuple[Task, str]:
    task = Task(text, instances)
    links = [Link(text.index(words), text.index(words) + len(words), numbers) for words, numbers in phrases]
    return task, write_links(task, links)


_MARKET = _things(
    ("person", (0.05, 0.3, 0.2, 0.95)),
    ("person", (0.22, 0.28, 0.36, 0.93)),
    ("person", (0.4, 0.33, 0.52, 0.9)),
    ("truck", (0.55, 0.2, 1.0, 0.8)),
    ("banana", (0.1, 0.7, 0.3, 0.85)),
)
_YARD = _things(
    ("dog", (0.08, 0.5, 0.35, 0.9)),
    ("dog", (0.6, 0.45, 0.95, 0.92)),
    ("frisbee", (0.4, 0.1, 0.5, 0.16)),
)
_OFFICE = _things(("laptop", (0.3, 0.4, 0.6, 0.8)), ("cup", (0.65, 0.6, 0.72, 0.75)))
EXAMPLES: tuple[tuple[Task, str], ...] = (
    _example(
        _MARKET,
        "Three people unload fruit from a parked truck. Its tailgate is open, and a cyclist may pass soon.",
        ("Three people", (0, 1, 2)),
        ("a parked truck", (3,)),
    ),
    _example(
        _YARD,
        "The dog on the right watches the frisbee, while the one on the left has lost interest in the game.",
        ("The dog on the right", (1,)),
        ("the frisbee", (2,)),
        ("the one on the left", (0,)),
    ),
    _example(_OFFICE, "The weather outside is not visible, but the mood seems calm."),
    _example(_YARD, "What could happen if nobody caught the frisbee?", ("the frisbee", (2,))),
    _example(
        _OFFICE,
        "A laptop (switched on) stands on the desk; a cup [perhaps of tea] is next to it.",
        ("A laptop", (0,)),
        ("a cup", (1,)),
    ),
)
"""A text about a group, two of a class told apart by side, nothing to mark, a question, own brackets."""


def boxes_of(instances: Sequence[Instance]) -> str:
    """The numbered list of instances."""
    lines = (
        f"{k}.{one.category}: [{', '.join(f'{v:.3f}' for v in one.box)}]"
        for k, one in enumerate(instances, 1)
    )
    return "\n".join(lines)


def user_text(task: Task) -> str:
    """What is given of a task: the instances, then the text."""
    return f"Things in the picture:\n{boxes_of(task.instances)}\n\nText:\n{task.text}"


def annotation(task: Task) -> tuple[Message, ...]:
    """The conversation that asks for the links of a text."""
    shown = [
        message
        for example, answer in EXAMPLES
        for message in (Message("user", user_text(example)), Message("assistant", answer))
    ]
    return (Message("system", SYSTEM), *shown, Message("user", user_text(task)))


def repair(task: Task, answer: str, fault: str) -> tuple[Message, ...]:
    """The same conversation, gone on after an answer that cannot be taken."""
    complaint = (
        f"This answer cannot be used: {fault}. Copy the text again without changing a character, with "
        "correct brackets, and write nothing else."
    )
    return (*annotation(task), Message("assistant", answer), Message("user", complaint))
