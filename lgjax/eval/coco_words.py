"""Words for the 80 classes of COCO, and words for groups of them; written for lgjax.

"man/men" is a word with an irregular plural; the others take -s, -es or -ies. The name of a class is one of
its words even where it is not repeated here.
"""

from __future__ import annotations

WORDS: dict[str, str] = {
    "person": (
        "person/people, man/men, woman/women, child/children, boy, girl, kid, toddler, infant, baby, "
        "lady, gentleman/gentlemen, guy, adult, teenager, pedestrian, passenger, spectator, "
        "individual, human, human being, player, baseball player, tennis player, football player, "
        "soccer player, basketball player, skier, snowboarder, skateboarder, surfer, cyclist, biker, "
        "motorcyclist, rider, jockey, batter, pitcher, catcher, umpire, referee, athlete, runner, "
        "chef, waiter, waitress, policeman/policemen, officer, police officer, worker, farmer, "
        "soldier, tourist, shopper, vendor, bride, groom, couple, crowd, family, friend, father, "
        "mother, dad, mom, son, daughter, brother, sister, student, teacher, businessman/businessmen, "
        "businesswoman/businesswomen, fisherman/fishermen, fireman/firemen, firefighter, cowboy, "
        "audience, onlooker, bystander, swimmer, hiker, musician, customer, employee, guest, skater"
    ),
    "bicycle": "bike, cycle, push bike, mountain bike, tricycle",
    "car": (
        "automobile, sedan, taxi, cab, suv, jeep, hatchback, station wagon, limousine, van, minivan, "
        "police car"
    ),
    "motorcycle": "motorbike, motor bike, motor cycle, moped, scooter, motor scooter, dirt bike",
    "airplane": "plane, aeroplane, aircraft/aircraft, jet, jetliner, airliner, jumbo jet, biplane",
    "bus": "minibus, double decker, school bus, tour bus",
    "train": "locomotive, tram, subway train, trolley car, railcar, streetcar",
    "truck": "lorry/lorries, pickup, pickup truck, fire truck, fire engine, semi truck, dump truck",
    "boat": ("ship, sailboat, canoe, kayak, yacht, ferry, rowboat, dinghy, vessel, raft, gondola, speedboat"),
    "traffic light": "traffic signal, stop light, stoplight, street signal, signal light",
    "fire hydrant": "hydrant, fireplug",
    "stop sign": "",
    "parking meter": "",
    "bench": "park bench, wooden bench, pew",
    "bird": (
        "pigeon, seagull, gull, duck, goose/geese, swan, parrot, owl, sparrow, eagle, crow, penguin, "
        "rooster, hen, flamingo, peacock, pelican, heron, ostrich, robin, dove, hawk, parakeet, "
        "duckling"
    ),
    "cat": "kitten, kitty, tabby, feline, tomcat",
    "dog": (
        "puppy, pup, hound, canine, terrier, poodle, retriever, labrador, bulldog, dalmatian, "
        "sheepdog, beagle"
    ),
    "horse": "pony, foal, stallion, mare, colt",
    "sheep": "sheep/sheep, lamb, ram, ewe",
    "cow": "cattle/cattle, bull, calf/calves, ox/oxen, heifer",
    "elephant": "baby elephant",
    "bear": "grizzly, grizzly bear, polar bear, brown bear, black bear, bear cub, panda",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack, knapsack, back pack, book bag",
    "umbrella": "parasol, sunshade",
    "handbag": "hand bag, purse, shoulder bag, tote bag, tote, satchel",
    "tie": "necktie, neck tie, bow tie, bowtie",
    "suitcase": "suit case, luggage/luggage, baggage/baggage, carry on",
    "frisbee": "flying disc, flying disk, disc",
    "skis": "ski, pair of skis",
    "snowboard": "snow board",
    "sports ball": ("ball, baseball, basketball, football, soccer ball, tennis ball, volleyball, beach ball"),
    "kite": "",
    "baseball bat": "bat",
    "baseball glove": "glove, mitt, baseball mitt",
    "skateboard": "skate board, longboard",
    "surfboard": "surf board, boogie board, bodyboard, paddleboard",
    "tennis racket": "racket, racquet, tennis racquet",
    "bottle": "wine bottle, beer bottle, water bottle, glass bottle, flask",
    "wine glass": "wineglass, goblet, champagne glass, glass of wine, glasses of wine, champagne flute",
    "cup": "mug, teacup, coffee cup, glass of water, tumbler",
    "fork": "",
    "knife": "knife/knives, butter knife/butter knives, cleaver",
    "spoon": "teaspoon, tablespoon, ladle",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger, hamburger, cheeseburger, panini, hoagie, burrito",
    "orange": "tangerine, clementine, mandarin",
    "broccoli": "broccoli/broccoli",
    "carrot": "",
    "hot dog": "hotdog, frankfurter, corn dog",
    "pizza": "pizza slice",
    "donut": "doughnut, bagel",
    "cake": "cupcake, birthday cake, wedding cake, cheesecake, shortcake, carrot cake",
    "chair": (
        "armchair, arm chair, stool, recliner, high chair, highchair, rocking chair, office chair, seat"
    ),
    "couch": "sofa, loveseat, love seat, settee, futon",
    "potted plant": "plant, houseplant, house plant, flower pot, flowerpot, potted flower, potted tree",
    "bed": "mattress, bunk bed, bunk, cot, crib",
    "dining table": "table, dinner table, coffee table, kitchen table, desk, tabletop, picnic table",
    "toilet": "urinal, commode, toilet seat",
    "tv": (
        "television, television set, tv set, tv screen, monitor, flat screen, computer monitor, "
        "computer screen"
    ),
    "laptop": "laptop computer, notebook computer, macbook, computer",
    "mouse": "mouse/mice, computer mouse/computer mice",
    "remote": "remote control, remote controller, game controller, controller, wii remote, wiimote",
    "keyboard": "computer keyboard",
    "cell phone": "phone, cellphone, mobile phone, smartphone, smart phone, iphone, telephone, mobile",
    "microwave": "microwave oven",
    "oven": "stove, stovetop, stove top",
    "toaster": "toaster oven",
    "sink": "washbasin, wash basin, basin",
    "refrigerator": "fridge, freezer",
    "book": "novel, textbook, paperback, notebook",
    "clock": "alarm clock, wall clock, clock face",
    "vase": "",
    "scissors": "scissors/scissors, pair of scissors/pairs of scissors, shears/shears",
    "teddy bear": "teddy, stuffed bear, toy bear, stuffed animal, plush toy",
    "hair drier": "hair dryer, hairdryer, hairdrier, blow dryer, blow drier",
    "toothbrush": "tooth brush",
}
"""Class -> its words, singular."""

OTHER_THINGS = (
    "train track, train station, railway station, bus stop, bus station, car park, car seat, toilet "
    "paper, toilet roll, bird house, birdhouse, bird feeder, bird bath, dog house, dog food, cat "
    "food, cat bed, dog bed, horse cart, horse carriage, home plate, table tennis, table cloth, "
    "tablecloth, table lamp, boat dock, boat house, book shelf/book shelves, bookshelf/bookshelves, "
    "book case, bookcase, phone booth, clock tower, tennis court, baseball field, football field, "
    "soccer field, basketball court, baseball game, tennis match, soccer game, ski slope, ski resort, "
    "ski lift, ski pole, baseball cap, baseball uniform, couple of, crowd of, family of, mouse pad, "
    "cake pan, pizza box, pizza cutter, bed sheet, bed frame, bedroom, bottle cap, banana tree, "
    "orange juice, orange tree, apple tree, apple juice, cup holder, chair lift, oven mitt, oven "
    "glove, sink faucet, knife block, dining room, laptop bag, computer desk, flower bed, river bed, "
    "power plant, kite string"
)
"""Compounds that name no class although one of their words does."""

GROUPS: dict[str, str] = {
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "pet": "cat, dog, bird",
    "bag": "backpack, handbag, suitcase",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "fruit": "banana, apple, orange",
    "vegetable": "broccoli, carrot",
    "furniture/furniture": "chair, couch, bed, dining table, bench",
    "appliance": "microwave, oven, toaster, sink, refrigerator",
    "utensil": "fork, knife, spoon",
    "cutlery/cutlery": "fork, knife, spoon",
    "silverware/silverware": "fork, knife, spoon",
    "drink": "bottle, wine glass, cup",
    "glass": "wine glass, cup",
    "dish": "bowl",
    "board": "surfboard, snowboard, skateboard",
    "toy": "teddy bear",
    "flower": "potted plant",
    "screen": "tv, laptop",
    "device": "laptop, tv, cell phone, remote, keyboard, mouse",
}
"""Word for a group -> the classes any of which it may mean; for judging a phrase, never for CHAIR."""

NOUN_ONLY = frozenset({"orange", "remote", "mobile"})
"""Words that are also adjectives: they name the class only where no other word follows them."""
