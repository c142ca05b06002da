"""What people call the 80 categories of COCO, in singular and plural.

For tying words to instances and for judging whether a phrase names a category. A list of our own, in the
spirit of CHAIR's synonyms: only names that are safe without seeing the picture.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "person": (
        *("human", "man", "woman", "boy", "girl", "child", "kid", "baby", "toddler", "infant", "lady", "guy"),
        *(
            "gentleman",
            "adult",
            "male",
            "female",
            "teenager",
            "individual",
            "player",
            "athlete",
            "skateboarder",
            "skater",
        ),
        *("skier", "snowboarder", "surfer", "rider", "cyclist", "bicyclist", "biker", "motorcyclist"),
        *("pitcher", "batter", "catcher", "umpire", "worker", "employee", "chef", "cook", "waiter"),
        *("waitress", "policeman", "officer", "police officer", "student", "teacher", "pedestrian"),
        *("passenger", "driver", "customer", "shopper", "tourist", "friend", "fan", "spectator", "onlooker"),
        *("bystander", "farmer", "cowboy", "bride", "groom", "father", "mother", "dad", "mom", "son"),
        *("daughter", "brother", "sister", "husband", "wife", "businessman", "soldier", "fisherman"),
        *("tennis player", "baseball player", "soccer player", "little girl", "little boy", "young man"),
        *("young woman", "young girl", "young boy", "goalie", "swimmer", "vendor", "firefighter", "someone"),
    ),
    "bicycle": ("bike", "pushbike"),
    "car": ("automobile", "sedan", "taxi", "cab", "suv", "hatchback", "convertible", "minivan", "jeep"),
    "motorcycle": ("motorbike", "scooter", "moped", "motor bike", "motor cycle"),
    "airplane": (
        *(
            "plane",
            "aeroplane",
            "jet",
            "aircraft",
            "airliner",
            "jetliner",
            "passenger jet",
            "passenger plane",
        ),
        *("jumbo jet", "jet airplane", "biplane", "fighter jet"),
    ),
    "bus": ("city bus", "tour bus", "school bus", "double decker bus", "double decker", "trolleybus"),
    "train": ("locomotive", "tram", "passenger train", "freight train", "steam engine", "train engine"),
    "truck": ("lorry", "pickup", "pick up truck", "pickup truck", "fire truck", "dump truck", "semi truck"),
    "boat": (
        *("ship", "sailboat", "canoe", "kayak", "ferry", "yacht", "motorboat", "rowboat", "speedboat"),
        *("raft", "dinghy", "gondola", "fishing boat", "sail boat", "row boat"),
    ),
    "traffic light": ("traffic signal", "stoplight", "stop light", "traffic lights"),
    "fire hydrant": ("hydrant", "fireplug", "fire plug"),
    "stop sign": (),
    "parking meter": ("meter",),
    "bench": ("park bench",),
    "bird": (
        *(
            "pigeon",
            "seagull",
            "gull",
            "duck",
            "goose",
            "swan",
            "parrot",
            "parakeet",
            "canary",
            "owl",
            "eagle",
        ),
        *("hawk", "crow", "sparrow", "chicken", "rooster", "hen", "peacock", "pelican", "penguin", "heron"),
    ),
    "cat": ("kitten", "kitty", "tabby", "house cat"),
    "dog": ("puppy", "pup", "hound", "terrier", "poodle", "bulldog", "sheepdog", "doggy", "lap dog"),
    "horse": ("pony", "foal", "mare", "stallion", "colt"),
    "sheep": ("lamb", "ewe"),
    "cow": ("cattle", "bull", "calf", "ox"),
    "elephant": ("baby elephant",),
    "bear": ("grizzly", "grizzly bear", "polar bear", "brown bear", "black bear", "bear cub", "panda"),
    "zebra": (),
    "giraffe": (),
    "backpack": ("knapsack", "rucksack", "back pack", "book bag"),
    "umbrella": ("parasol", "beach umbrella"),
    "handbag": ("purse", "hand bag", "pocketbook"),
    "tie": ("necktie", "neck tie", "bow tie", "bowtie"),
    "suitcase": ("luggage", "suit case", "piece of luggage"),
    "frisbee": ("flying disc", "flying disk"),
    "skis": ("ski",),
    "snowboard": ("snow board",),
    "sports ball": ("ball", "tennis ball", "soccer ball", "soccerball", "volleyball", "beach ball"),
    "kite": (),
    "baseball bat": ("bat",),
    "baseball glove": ("baseball mitt", "catcher's mitt", "mitt"),
    "skateboard": ("skate board",),
    "surfboard": ("surf board", "boogie board"),
    "tennis racket": ("racket", "racquet", "tennis racquet", "tennis raquet"),
    "bottle": ("wine bottle", "water bottle", "beer bottle", "bottle of wine", "bottle of water"),
    "wine glass": ("wineglass", "glass of wine", "glass of red wine", "glass of white wine", "glass"),
    "cup": ("mug", "coffee cup", "coffee mug", "teacup", "tea cup", "cup of coffee", "cup of tea", "glass"),
    "fork": (),
    "knife": ("steak knife", "butter knife", "chef's knife"),
    "spoon": ("teaspoon", "tablespoon"),
    "bowl": (),
    "banana": (),
    "apple": (),
    "sandwich": ("sub", "hamburger", "burger", "cheeseburger", "panini", "sub sandwich"),
    "orange": ("mandarin", "tangerine", "clementine"),
    "broccoli": (),
    "carrot": (),
    "hot dog": ("hotdog", "frankfurter"),
    "pizza": ("pizza pie", "slice of pizza", "pizza slice"),
    "donut": ("doughnut", "bagel"),
    "cake": ("birthday cake", "cupcake", "wedding cake", "cheesecake", "sheet cake"),
    "chair": (
        "armchair",
        "stool",
        "high chair",
        "office chair",
        "lawn chair",
        "beach chair",
        "rocking chair",
    ),
    "couch": ("sofa", "loveseat", "love seat", "settee"),
    "potted plant": ("plant", "houseplant", "house plant", "flower pot", "flowerpot"),
    "bed": ("bunk bed", "double bed", "twin bed", "crib"),
    "dining table": ("table", "dining room table", "dinner table", "kitchen table", "picnic table"),
    "toilet": ("commode", "toliet", "urinal"),
    "tv": ("television", "tv set", "television set", "flat screen tv", "flat screen", "monitor"),
    "laptop": ("laptop computer", "notebook computer", "computer"),
    "mouse": ("computer mouse",),
    "remote": ("remote control", "controller", "wii remote", "game controller", "wii controller"),
    "keyboard": ("computer keyboard",),
    "cell phone": (
        "cellphone",
        "phone",
        "mobile phone",
        "smartphone",
        "smart phone",
        "iphone",
        "cellular phone",
    ),
    "microwave": ("microwave oven",),
    "oven": ("stove", "stove top oven", "stove top", "stovetop", "stovetop oven", "range"),
    "toaster": (),
    "sink": ("bathroom sink", "kitchen sink", "wash basin", "washbasin", "basin"),
    "refrigerator": ("fridge", "freezer"),
    "book": ("textbook", "novel", "cookbook"),
    "clock": ("clock face", "alarm clock", "wall clock"),
    "vase": ("flower vase",),
    "scissors": ("scissor", "pair of scissors", "shears"),
    "teddy bear": ("teddy", "stuffed bear", "stuffed teddy bear"),
    "hair drier": ("hair dryer", "hairdryer", "hairdrier", "blow dryer"),
    "toothbrush": ("tooth brush",),
}
"""Other names of each category, in singular; a name may stand for several ("glass")."""

_IRREGULAR = {
    "person": ("people", "persons"),
    "child": ("children",),
    "mouse": ("mice",),
    "knife": ("knives",),
    "wife": ("wives",),
    "calf": ("calves",),
    "goose": ("geese",),
    "ox": ("oxen",),
    "human": ("humans",),
    "sheep": ("sheep",),
    "cattle": ("cattle",),
    "luggage": ("luggage",),
    "aircraft": ("aircraft",),
    "broccoli": ("broccoli",),
    "scissors": ("scissors",),
    "shears": ("shears",),
    "skis": ("skis",),
    "traffic lights": ("traffic lights",),
    "someone": (),
}
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class Noun(NamedTuple):
    """A name of things: which categories it may mean, and whether it names one of them or several.

    Names that are the same in singular and plural ("sheep") are both.
    """

    categories: tuple[str, ...]
    singular: bool
    plural: bool


class Word(NamedTuple):
    """A word of a text, in lower case, at characters [start, end)."""

    text: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """Cut a text into its words; "chef's" and "walk-in" are one word each."""
    return [Word(m[0].lower().replace("’", "'"), *m.span()) for m in _WORD.finditer(text)]


def plurals(name: str) -> tuple[str, ...]:
    """The plural forms of a name: of its last word, or of what stands before "of"."""
    before, of, after = name.partition(" of ")
    first, _, last = before.rpartition(" ")
    if last in _IRREGULAR:
        forms = _IRREGULAR[last]
    elif last.endswith("man"):
        forms = (last.removesuffix("man") + "men",)
    elif re.search(r"[^aeiou]y$", last):
        forms = (last[:-1] + "ies",)
    elif re.search(r"(s|x|z|ch|sh)$", last):
        forms = (last + "es",)
    else:
        forms = (last + "s",)
    return tuple(f"{first} {form}".strip() + of + after for form in forms)


class Lexicon:
    """The names of some categories, found in texts longest first."""

    def __init__(self, categories: Iterable[str]) -> None:
        """Know each category by its own name and, where it is one of COCO's, by its synonyms."""
        forms: dict[str, dict[str, set[str]]] = {}
        for category in categories:
            for name in (category, *SYNONYMS.get(category, ())):
                forms.setdefault(name.lower(), {}).setdefault("singular", set()).add(category)
                for plural in plurals(name.lower()):
                    forms.setdefault(plural, {}).setdefault("plural", set()).add(category)
        self._nouns = {
            tuple(word.text for word in words_of(name)): Noun(
                tuple(sorted(set().union(*numbers.values()))), "singular" in numbers, "plural" in numbers
            )
            for name, numbers in forms.items()
        }
        self._longest = max(map(len, self._nouns), default=0)

    def at(self, words: Sequence[Word], start: int) -> tuple[Noun, int] | None:
        """The longest name that begins with word `start`, and the word after it."""
        for end in range(min(start + self._longest, len(words)), start, -1):
            if noun := self._nouns.get(tuple(word.text for word in words[start:end])):
                return noun, end
        return None

    def find(self, words: Sequence[Word]) -> list[tuple[int, int, Noun]]:
        """The names in a text, as (first word, word after the last, noun), without overlaps."""
        found, start = [], 0
        while start < len(words):
            if (match := self.at(words, start)) is None:
                start += 1
                continue
            noun, end = match
            found.append((start, end, noun))
            start = end
        return found


@functools.cache
def coco_lexicon() -> Lexicon:
    """The names of COCO's 80 categories."""
    return Lexicon(SYNONYMS)
