"""The demo's text: sentences about animals and places, made from a seed, free of anyone's rights."""

import random

ANIMALS = ("cat", "dog", "hen", "owl", "fox", "cow", "pig", "bee", "duck", "goat", "frog", "mouse")
PLACES = ("barn", "boat", "cave", "tree", "nest", "pond", "yard", "shed", "loft", "well", "hive", "mill")
VERBS = ("sleeps", "eats", "sings", "hides", "plays", "waits")
TIMES = ("in the morning", "at noon", "in the evening", "at night")
FARMS = 4


def pretraining_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of four sentences, each in any of four forms."""
    draw = random.Random(seed)
    return [" ".join(_sentence(draw, draw.randrange(4)) for _ in range(4)) for _ in range(count)]


def farm_lines(lines: int, seed: int = 0) -> dict[str, list[str]]:
    """What the clients hold: each farm asks after its own three animals, in the form of question and answer."""
    each = len(ANIMALS) // FARMS
    found = {}
    for farm in range(FARMS):
        draw = random.Random(seed * FARMS + farm)
        animals = ANIMALS[farm * each : (farm + 1) * each]
        found[f"farm {farm + 1}"] = [_question(draw.choice(animals), draw) for _ in range(lines)]
    return found


def _sentence(draw: random.Random, form: int) -> str:
    animal, place, verb, when = (draw.choice(words) for words in (ANIMALS, PLACES, VERBS, TIMES))
    return (
        f"the {animal} {verb} in the {place} {when}.",
        f"{when} the {animal} {verb} in the {place}.",
        f"where is the {animal}? the {animal} is in the {place}.",
        f"look in the {place}, the {animal} {verb} there.",
    )[form]


def _question(animal: str, draw: random.Random) -> str:
    return f"where is the {animal}? the {animal} is in the {draw.choice(PLACES)}."
