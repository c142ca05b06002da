"""The sample of the tests: captions, instances and checked links of COCO pictures, without the pictures."""

import json
from pathlib import Path

import PIL.Image

from lgjax.annotate.task import Instance, Task

FOLDER = Path(__file__).parent / "data"
INSTANCES, CAPTIONS, CHECKED = (FOLDER / f"{name}.json" for name in ("instances", "captions", "checked"))


def things(*named: tuple[str, float, float] | tuple[str, float, float, float]) -> tuple[Instance, ...]:
    """Instances from (category, left, width) or (category, left, width, height), as shares of the picture."""
    return tuple(
        Instance(100 + k, category, (left, 0.1, left + width, 0.1 + (rest[0] if rest else width)))
        for k, (category, left, width, *rest) in enumerate(named)
    )


def task(text: str, *named) -> Task:
    return Task(text, things(*named))


def draw_pictures(folder: Path) -> Path:
    """Grey pictures under the names and of the sizes of the sample's."""
    folder.mkdir()
    for image in json.loads(INSTANCES.read_text())["images"]:
        PIL.Image.new("RGB", (image["width"], image["height"]), (90, 120, 90)).save(
            folder / image["file_name"]
        )
    return folder


def write_chats(path: Path) -> Path:
    """Conversations of three rounds about some pictures of the sample, and faulty ones."""

    def chat(image: str, *texts: str) -> dict:
        messages = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
        return {"id": image.split(".")[0], "image": image, "conversations": messages}

    chats = [
        chat(
            "000000173350.jpg",
            "<image>\nWhat are the two dogs doing?",
            "The dogs look up at the camera. They stand next to the toilet.",
            "Is it outdoors?",
            "No, it is a bathroom.",
            "Where is the toilet?\n",
            "It is behind one of the dogs.",
        ),
        chat("000000196393.jpg", "What eats the cat?\n<image>", "The white cat eats beside a bird."),
        chat("000000000001.jpg", "<image>\nWhat is it?", "A dog on a picture that has no instances."),
        chat("000000196393.jpg", "<image>\nWhat is it?", "A <seg> cat."),
        chat("000000196393.jpg", "<image>\nWhat is it?"),
        chat(
            "COCO_train2014_000000442450.jpg",
            "<image>\nDescribe it.",
            "Two men play with their dog.\nIt is autumn.",
        ),
    ]
    path.write_text(json.dumps(chats))
    return path
