"""Tiny datasets of every layout, made up, with small pictures and deliberate faults; no file of anybody's.

Each function writes one into a folder and returns the folder. Its docstring says how many records are good,
which are refused (RecordError), and which good ones lose something. All share the two scenes of `coco`:
picture 42 (a cat on a sofa, a crowd, a chair with an empty polygon) and picture 43 (two dogs and a ball whose
box is broken).
"""

import json
import pickle
from pathlib import Path

import numpy as np
import PIL.Image

from lgjax.data.masks import encode

SIZE = (64, 48)
CAT, SOFA, CROWD, CHAIR, DOG, OTHER_DOG, BALL = 1001, 1002, 1003, 1004, 1101, 1102, 1103
UNKNOWN = 9999
CATEGORIES = {17: "cat", 63: "couch", 1: "person", 62: "chair", 18: "dog", 37: "sports ball"}


def picture(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    """Write a noisy picture; `orientation` is its EXIF tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(path, exif=exif)


def put(path: Path, data) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def rectangle(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def bitmap(x: int, y: int, width: int, height: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def annotation(number: int, image: int, category: int, box: list[int], **fields) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "iscrowd": 0,
        "segmentation": rectangle(*box) if len(box) == 4 else [],
        **fields,
    }


def coco(prefix: str = "", suffix: str = ".jpg") -> dict:
    """Pictures 42 and 43 with their instances, picture 44 without any."""
    crowd = {"iscrowd": 1, "segmentation": encode(bitmap(40, 2, 20, 10))}
    return {
        "images": [
            {"id": i, "file_name": f"{prefix}{i:012d}{suffix}", "width": SIZE[0], "height": SIZE[1]}
            for i in (42, 43, 44)
        ],
        "annotations": [
            annotation(CAT, 42, 17, [4, 6, 20, 30]),
            annotation(SOFA, 42, 63, [0, 20, 60, 26]),
            annotation(CROWD, 42, 1, [40, 2, 20, 10], **crowd),
            annotation(CHAIR, 42, 62, [50, 30, 10, 10], segmentation=[]),
            annotation(DOG, 43, 18, [2, 2, 20, 20]),
            annotation(OTHER_DOG, 43, 18, [30, 10, 20, 20]),
            annotation(BALL, 43, 37, [30, 10, 5]),
        ],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
    }


def chat(*texts) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def write_flickr(folder: Path) -> Path:
    """Train: 3 good sentences, 1 refused (no boxed phrase); val: 1 good.

    Sentence 7 is that of spec/training_and_data.md 5.1. Sentence 8 has a box with two spans and drops an
    overlapping span, one outside the caption and (when cleaned) an empty polygon. The picture of sentence 10
    is missing. Annotation 33 has a pseudo mask besides its own.
    """
    dogs = {"file_name": "123.jpg", "height": 375, "width": 500, "dataset_name": "flickr"}
    images = [
        {**dogs, "id": 7, "caption": "Two dogs chase a red ball ."},
        {**dogs, "id": 8, "caption": "A dog with its toy runs ."},
        {**dogs, "id": 9, "caption": "It is sunny ."},
        {**dogs, "id": 10, "caption": "A cat .", "file_name": "124.jpg"},
    ]

    def boxed(number: int, image: int, box: list[int], spans: list, **fields) -> dict:
        return annotation(number, image, 1, box, tokens_positive=spans, **fields)

    whole = encode(bitmap(40, 60, 100, 50, (500, 375)))
    annotations = [
        boxed(31, 7, [40, 60, 100, 50], [[0, 8]], segmentation=whole),
        boxed(32, 7, [210, 80, 70, 60], [[0, 8]], segmentation=[[210, 80, 280, 80, 280, 140]]),
        boxed(33, 7, [160, 150, 20, 20], [[15, 25]]),
        boxed(34, 8, [40, 60, 100, 50], [[0, 5], [11, 18]]),
        boxed(35, 8, [10, 10, 20, 20], [[0, 18], [20, 99]], segmentation=[]),
        boxed(36, 8, [10, 10, 20, 20], [[14, 18]]),
        boxed(37, 10, [10, 10, 20, 20], [[0, 5]]),
    ]
    categories = [{"id": 1, "name": "object"}]
    for split, some in (("train", images), ("val", images[:1])):
        ids = {image["id"] for image in some}
        kept = [a for a in annotations if a["image_id"] in ids]
        data = {"images": some, "annotations": kept, "categories": categories}
        put(folder / f"annotations/final_flickr_separateGT_{split}.json", data)
    line = {"id": 33, "segmentation": encode(bitmap(162, 152, 10, 10, (500, 375)))}
    (folder / "annotations/flickr_masks.jsonl").write_text(json.dumps(line) + "\n\n")
    picture(folder / "flickr30k-images/123.jpg", (500, 375))
    return folder


def write_coco(folder: Path) -> Path:
    """Train and val, each: 2 good records, 1 refused (picture 44 has no instances). No picture of 43."""
    for split in ("train", "val"):
        put(folder / f"annotations/instances_{split}2017.json", coco())
        picture(folder / f"{split}2017/000000000042.jpg")
    return folder


def write_panoptic(folder: Path) -> Path:
    """Train: 1 good record; 2 refused (the map of 43 is broken, 44 has no annotation).

    Picture 42 has two segments of one class without suffix, one of another, a crowd and one without pixels.
    """
    ids = np.zeros((SIZE[1], SIZE[0]), np.int64)
    for number, box in ((258, (0, 0, 10, 10)), (70000, (20, 0, 10, 10)), (3, (0, 20, 64, 28))):
        ids[bitmap(*box)] = number
    ids[bitmap(40, 0, 5, 5)] = 4
    maps = folder / "annotations/panoptic_train2017"
    maps.mkdir(parents=True)
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    PIL.Image.fromarray(colours).save(maps / "000000000042.png")
    (maps / "000000000043.png").write_bytes(b"no picture")
    segments = [(258, 1, 0), (70000, 2, 0), (3, 3, 0), (4, 4, 1), (5, 4, 0)]
    data = {
        "images": coco()["images"],
        "annotations": [
            {
                "image_id": image,
                "file_name": f"{image:012d}.png",
                "segments_info": [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments],
            }
            for image in (42, 43)
        ],
        "categories": [
            {"id": 1, "name": "tree-merged"},
            {"id": 2, "name": "tree"},
            {"id": 3, "name": "floor-other-merged"},
            {"id": 4, "name": "person"},
        ],
    }
    put(folder / "annotations/panoptic_train2017.json", data)
    picture(folder / "train2017/000000000042.jpg")
    return folder


def _refs() -> list[dict]:
    said = [
        ("train", 42, CAT, ["cat on the left", "Left cat"]),
        ("train", 42, CAT, ["the tabby"]),
        ("train", 42, UNKNOWN, ["nobody"]),
        ("train", 42, SOFA, [" "]),
        ("val", 43, DOG, ["small dog"]),
        ("testA", 44, UNKNOWN, ["nothing"]),
    ]
    return [
        {
            "ref_id": number,
            "split": split,
            "image_id": image,
            "ann_id": instance,
            "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
            "sentences": [{"sent_id": 0, "raw": text, "sent": text.lower()} for text in texts],
        }
        for number, (split, image, instance, texts) in enumerate(said)
    ]


def write_refcoco(folder: Path) -> Path:
    """REFER's layout. Train and val: 1 good record each; testA: 1 refused (unknown instance).

    Train drops an unknown instance and one without a text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(_refs(), protocol=2))
    put(folder / "instances.json", coco("COCO_train2014_"))
    picture(folder / "train2014/COCO_train2014_000000000042.jpg")
    return folder


def write_refcoco_merged(folder: Path) -> Path:
    """The merged layout. Train: 1 good record; picture 43 is of another split, and 44 of one in refcoco+/."""
    data = coco()
    by_id = {a["id"]: a for a in data["annotations"]}
    by_id[UNKNOWN] = annotation(UNKNOWN, 44, 17, [1, 1, 9, 9])
    said = [
        ("train", CAT, ["cat on the left", "Left cat"]),
        ("train", SOFA, ["the couch"]),
        ("train", DOG, ["first dog"]),
        ("val", OTHER_DOG, ["second dog"]),
        ("train", UNKNOWN, ["a cat"]),
    ]
    data["annotations"] = [
        {**by_id[i], "id": 5000 + k, "ann_id": i, "split": split, "sentences": [{"raw": t} for t in texts]}
        for k, (split, i, texts) in enumerate(said)
    ]
    put(folder / "annotations/grounding_train2017.json", data)
    (folder / "refcoco+").mkdir()
    (folder / "refcoco+/refs(unc).p").write_bytes(pickle.dumps(_refs()))
    picture(folder / "train2017/000000000042.jpg")
    return folder


def write_gvc(folder: Path) -> Path:
    """3 good records, 2 refused: 2 (count of <seg>) and 4 (its picture is missing and of unknown size).

    Record 0 is that of spec/training_and_data.md 5.3. Record 1 begins with an answer and has a null, an
    unknown id and a group. Record 3 has no `gd_ls`, and a picture without instances.
    """
    records = [
        {
            "id": "000000000042",
            "image": "000000000042.jpg",
            "conversations": chat(
                "<image>\nWhat is on the sofa? (with grounding)",
                "<g_s> A cat <g_e> <seg> sleeps on <g_s> the sofa <g_e> <seg> .",
                "Is it indoors?",
                "Yes, it is indoors.",
            ),
            "gd_ls": [[CAT], [SOFA]],
        },
        {
            "id": "000000000043",
            "image": "000000000043.jpg",
            "conversations": chat(
                "",
                "Hello.",
                "What is there? (with grounding)\n<image>",
                "<g_s> Dogs <g_e> <seg>, <g_s> grass <g_e> <seg> and <g_s> a bird <g_e> <seg>.",
            )[1:],
            "gd_ls": [[DOG, OTHER_DOG], None, [UNKNOWN]],
        },
        {
            "id": "2",
            "image": "000000000042.jpg",
            "conversations": chat("<image>\nWhat?", "<g_s> A cat <g_e> <seg> ."),
            "gd_ls": [[CAT], [SOFA]],
        },
        {
            "id": "3",
            "image": "000000000045.jpg",
            "conversations": chat("<image>\nWhat?", "<g_s> A bus <g_e> <seg> ."),
        },
        {"id": "4", "image": "000000000046.jpg", "conversations": chat("<image>\nWhat?", "A bus.")},
    ]
    put(folder / "annotations/grounded_visual_chat_data.json", records)
    put(folder / "annotations/instances_train2017_gvc.json", coco("COCO_train2014_"))
    picture(folder / "train2014/COCO_train2014_000000000042.jpg")
    picture(folder / "train2014/000000000043.jpg")
    picture(folder / "train2014/000000000045.jpg", (30, 20))
    return folder


def write_llava(folder: Path) -> Path:
    """3 good records (a picture lying on its side, text only, grounding tokens), 2 refused (pictures)."""
    asked = chat("What is it?\n<image>", "A cat.")
    records = [
        {"id": "0", "image": "000000000042.jpg", "conversations": asked},
        {"id": "1", "conversations": chat("Hi", "Hello")},
        {
            "id": "2",
            "image": "000000000042.jpg",
            "conversations": chat("<image>\nWhat?", "<g_s> A cat <g_e> <seg> ."),
        },
        {"id": "3", "image": "broken.jpg", "conversations": asked},
        {"id": "4", "image": "missing.jpg", "conversations": asked},
    ]
    put(folder / "llava_instruct_150k.json", records)
    picture(folder / "train2017/000000000042.jpg", orientation=6)
    (folder / "train2017/broken.jpg").write_bytes(b"\xff\xd8 cut")
    return folder


def write_visual_prompt(folder: Path) -> Path:
    """3 good records, 2 refused: 3 (more <obj> than ids) and 4 (its one region is unknown).

    Record 0 is that of spec/training_and_data.md 5.4. Record 1 points at two dogs with "%", and 50% is none.
    Record 2 loses a round whose region is unknown.
    """
    cat, dogs = "000000000042.jpg", "000000000043.jpg"
    first, second = ("<image>\nWhat is the object <obj> doing?", "The cat is asleep."), ("Is it day?", "Yes.")
    records = [
        {"image": cat, "conversations": chat(*first, *second), "q_gd_ls": [[CAT], None]},
        {
            "image": dogs,
            "conversations": chat("Is 50% of the object % like the object % ?\n<image>", "Yes."),
            "q_gd_ls": [[DOG, OTHER_DOG]],
        },
        {"image": cat, "conversations": chat(*first, *second), "q_gd_ls": [[UNKNOWN], None]},
        {"image": cat, "conversations": chat(*first), "q_gd_ls": [None]},
        {"image": cat, "conversations": chat(*first), "q_gd_ls": [[UNKNOWN]]},
    ]
    records = [{"id": str(i), **record} for i, record in enumerate(records)]
    put(folder / "annotations/llava_instruct_150k_visual_prompt.json", records)
    put(folder / "annotations/instances_train2014_filter.json", coco("COCO_train2014_"))
    for name in (cat, dogs):
        picture(folder / f"train2014/COCO_train2014_{name}")
    return folder


def write_region_caption(folder: Path) -> Path:
    """The released layout: 1 good record (two expressions, an unknown id lost), 1 refused (nothing left)."""
    said = [
        (42, CAT, ["cat on the left", "Left cat"]),
        (42, SOFA, "the couch"),
        (43, UNKNOWN, ["nobody"]),
        (42, UNKNOWN, ["nobody"]),
    ]
    records = [
        {
            "id": f"{image:012d}",
            "image": f"{image:012d}.jpg",
            "conversations": chat("Briefly describe the object % .", texts),
            "q_gd_ls": [[instance]],
        }
        for image, instance, texts in said
    ]
    put(folder / "annotations/grounding_train2017_instruct.json", records)
    put(folder / "annotations/instances_train2017_refcoco.json", coco())
    picture(folder / "train2017/000000000042.jpg")
    return folder


def write_visual_genome(folder: Path) -> Path:
    """Train: 1 good record (a blank region and one without a box lost), 1 refused (no region)."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[1], "width": SIZE[0]} for i in (5, 6)]
    said = [([10, 10, 20, 30], "a wooden bench"), ([1, 1, 5, 5], " "), ([1, 1], "x"), ([0, 0, 9, 9], "sky")]
    annotations = [
        {"id": i, "image_id": 5, "category_id": 1, "bbox": box, "caption": text}
        for i, (box, text) in enumerate(said)
    ]
    put(folder / "train.json", {"images": images, "annotations": annotations, "categories": []})
    picture(folder / "VG_100K/5.jpg")
    return folder


def write_plain(folder: Path) -> Path:
    """Train: 3 good records (chat, expressions, text only), 1 refused (an unknown id); val: 1 good.

    Line 2 of records.jsonl is blank.
    """
    cat = "000000000042.jpg"
    asked = {
        "image": cat,
        "turns": ["What is on <obj> ?", "<g_s> A cat <g_e> <seg> and <g_s> fur <g_e> <seg>."],
        "objects": [[CAT], None],
        "regions": [SOFA],
    }
    referring = {"image": cat, "expressions": [{"texts": ["left cat", "the cat"], "objects": [CAT]}]}
    unknown = {"image": cat, "expressions": [{"texts": ["dog"], "objects": [UNKNOWN]}]}
    train = [asked, None, referring, {"turns": ["Hi", "Hello"]}, unknown]
    put(folder / "instances.json", coco())
    for name, lines in (("records", train), ("records_val", [referring])):
        text = "\n".join("" if line is None else json.dumps(line) for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    picture(folder / "images" / cat)
    return folder
