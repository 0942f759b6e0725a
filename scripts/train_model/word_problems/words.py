"""Names and things the stories are made of. Test names never occur in training."""

import random

GIRLS = (
    "Anna Maria Lucy Emma Sofia Nora Ella Julia Clara Hannah Alice Grace Mia Zoe Ruby Ivy Lily Eva Leah Naomi Sarah Rachel "
    "Priya Aisha Fatima Mei Yuki Ingrid Olga Carmen Rosa Lena Tara Nina Amy Kate Jane Susan Linda Karen Nancy Betty Helen "
    "Donna Carol Ruth Laura Kelly Amber Diana Wendy Natalia Weng Betsy Julie Martha Janet Melanie Tina Mary Emily Olivia "
    "Charlotte Abigail Claire Holly Paige Jenny Megan Molly Jasmine"
).split()
BOYS = (
    "James John Robert Michael David Tom Ben Sam Jack Leo Max Noah Liam Ethan Lucas Henry Oscar Felix Hugo Omar Ali Raj Ravi "
    "Kenji Hiro Chen Wei Ivan Boris Carlos Diego Pedro Luis Mateo Peter Paul Mark George Frank Eric Kevin Brian Jason Gary "
    "Scott Adam Alan Carl Dennis Ralph Ken Tim Albert Charles Edward Joe Jerry Randy Toby James William Steven Andrew Josh "
    "Daniel Nathan Simon Billy Jeremy Marcus Victor Walter"
).split()
TEST_GIRLS = "Beatriz Odette Saskia Marisol Philippa Thandiwe Annika Ximena Dagny Rosalind Keiko Yasmin".split()
TEST_BOYS = "Anselm Bartholomew Dmitri Emeka Gustavo Ignatius Jorge Kwame Lorenz Rupert Tomasz Viktor".split()

FRUIT = "apples pears oranges plums peaches bananas lemons mangoes cherries grapes kiwis melons limes figs apricots".split()
TOYS = ["marbles", "stickers", "cards", "coins", "stamps", "beads", "shells", "buttons", "toy cars", "balloons", "dolls",
         "puzzles", "badges", "crayons", "tokens", "postcards", "pebbles", "comics", "ribbons", "magnets"]  # fmt: skip
SUPPLIES = ["pencils", "pens", "notebooks", "erasers", "folders", "rulers", "markers", "books", "brushes", "paint tubes"]
FOOD = ["cookies", "muffins", "cupcakes", "sandwiches", "pies", "bagels", "donuts", "rolls", "pancakes", "tacos", "pretzels",
        "tarts", "waffles", "burgers", "pizzas"]  # fmt: skip
CLOTHES = ["shirts", "hats", "scarves", "socks", "jackets", "belts", "ties", "dresses", "gloves", "skirts", "sweaters", "caps"]
ANIMALS = ["chickens", "cows", "sheep", "goats", "ducks", "horses", "pigs", "rabbits", "geese", "turkeys", "ponies", "donkeys"]
FLOWERS = ["roses", "tulips", "daisies", "lilies", "orchids", "irises", "violets", "poppies", "sunflowers", "daffodils"]
TREES = ["apple trees", "oak trees", "pine trees", "cherry trees", "maple trees", "lemon trees", "palm trees", "birch trees"]
MORE = """plates cups bowls spoons forks knives lamps candles chairs tables keys ropes nails screws bricks tiles boards wheels
bells drums flutes violins kites masks flags maps stones feathers leaves nuts raisins mints carrots onions potatoes tomatoes
beans pumpkins cabbages turnips mushrooms eggs cakes candies caramels lollipops biscuits fish birds kittens puppies hamsters
turtles frogs snails bees butterflies parrots robots trains planes boats bikes tires tickets letters posters photos paintings
songs stories games medals trophies rings necklaces pearls watches umbrellas bottles towels blankets pillows mirrors clocks
vases baskets barrels batteries bulbs cables phones cameras skates helmets rackets balls nets tents lanterns seeds bushes""".split()
THINGS = [*FRUIT, *TOYS, *SUPPLIES, *FOOD, *MORE]
BOXES = ["boxes", "bags", "baskets", "crates", "jars", "packs", "bins", "trays", "cartons", "sacks"]
FAMILY = ["brother", "sister", "cousin", "friend", "neighbor", "uncle", "aunt", "teacher", "classmate", "mother", "father"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COLORS = ["red", "blue", "green", "yellow", "white", "black", "purple", "orange", "pink", "brown", "gray", "silver"]
PLACES = ["shop", "store", "market", "bakery", "farm", "school", "library", "museum", "office", "factory", "garden", "club"]
TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
COUNT = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 12: "twelve"}
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}

_FIRST = "A E I O U An Al Em Ev Is Ig Or Os Ul Ur X Z Th Ph Kw Q Y".split()
_ONSET = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z".split()
_VOWEL = "a e i o u ai ea ia ie oa ou y".split()
_CODA = "b ck d l ld ll m n nd ng r rd rt s sh st t th x z".split()


def invented_name(rng: random.Random) -> str:
    """A pronounceable name that is probably new, such as Brenou or Stildan."""
    parts = [rng.choice(_ONSET) + rng.choice(_VOWEL) + (rng.choice(_CODA) if rng.random() < 0.5 else "")]
    parts += [rng.choice(_ONSET) + rng.choice(_VOWEL) + (rng.choice(_CODA) if rng.random() < 0.6 else "")]
    if rng.random() < 0.2:
        parts.append(rng.choice(_ONSET) + rng.choice(_VOWEL))
    if rng.random() < 0.35:
        parts[0] = rng.choice(_FIRST) + (rng.choice(_VOWEL) if rng.random() < 0.5 else "")
    return "".join(parts).capitalize()


def invented_things(rng: random.Random) -> str:
    """A plural that is probably no word, such as brenods: the model must copy it, not know it."""
    return invented_name(rng).lower().rstrip("s") + "s"
