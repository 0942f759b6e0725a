"""Words that names, descriptions and values are made of, and which of them training never sees.

One rule splits every name: a text whose checksum is a multiple of HELD is kept for the test sets. It holds for whole
tool names, parameter names, keys and descriptions, made-up ones included. The test sets' words are of the kept side too;
training may use such a word inside a longer name, in a description or as a value, never as a name.
"""

import random
import zlib
from functools import cache

from word_problems.words import BOYS, COLORS, DAYS, GIRLS, THINGS, invented_name

HELD = 8

VERBS = """get find fetch read show give return look retrieve check query load list view obtain search report pull tell
request resolve select inspect grab ask determine seek collect measure""".split()
ATTRIBUTES = """price weight height width length age color size weather temperature humidity population capital distance
speed salary balance status rating score rank address phone email owner author manager teacher title genre year date time
duration level stock quantity discount tax cost value volume area depth capacity pressure power voltage energy frequency
model brand version category department team position location country city region currency language timezone forecast wind
rainfall elevation latitude longitude postcode birthday nickname password username code serial barcode warranty deadline
priority progress budget revenue profit loss debt rent fee fare toll fine bonus wage grade mark credit point goal record
schedule timetable menu recipe ingredient calorie protein sugar fat vitamin dose allergy symptom diagnosis treatment
medicine doctor nurse room floor seat gate platform route stop delay arrival departure visa passport ticket booking
reservation order invoice receipt payment refund shipment parcel courier weightclass horsepower mileage fuel engine tire
mass density charge radius orbit moon planet star brightness altitude climate season crop harvest yield soil river lake
border flag anthem president mayor founder director actor singer album song lyrics chapter page publisher edition""".split()
KINDS = """city country product book employee student customer user person player team movie song album artist author
company store shop hotel restaurant flight train bus station airport car truck ship planet star river lake mountain
island park museum school university course lesson subject exam project task ticket order invoice parcel package account
card device phone laptop printer server machine robot sensor room building house street animal dog cat bird fish plant
tree flower fruit drug patient doctor recipe dish drink game level stock fund currency bank team club event meeting
concert festival language word chemical element molecule protein file folder document page website channel""".split()
ADJECTIVES = """current average total maximum minimum latest official annual monthly daily local public main final last
next new old full net gross estimated actual""".split()
ACTS = """create add send book set start stop open close delete update schedule order play reserve cancel print save
share rename move copy assign post publish register remove log plan pay buy sell rent upload invite mark lock unlock block
mute pause archive build draw mix paint launch submit""".split()
OBJECTS = """task reminder message email alarm timer meeting event note order ticket room table flight song playlist light
lamp thermostat heater door window camera robot file folder document report invoice payment account profile user member
contact post comment photo video label tag list job build server backup printer taxi parcel package delivery appointment
lesson class quiz game match team budget poll survey form page chart route trip hotel car bike seat""".split()
FIELDS = """name title color size city country street age date day time year month hour minute count amount quantity price
priority level status category type kind topic subject text message note label tag owner author sender receiver recipient
guest guests people seats rooms nights days pages copies volume brightness speed temperature duration length width height
weight distance limit budget language format style theme mode room floor building department team project role position
currency unit brand model flavor material shape code number reference location place destination origin start end from to
email phone host target source group channel branch version genre mood sport food drink dessert hobby pet""".split()
SWITCHES = """urgent public private active enabled visible locked recurring shared hidden paid free fragile express
insured silent repeat shuffle verbose compressed encrypted archived pinned starred featured discounted organic vegan
indoor outdoor heated furnished electric automatic digital wireless""".split()
OPTIONS = """low medium high small large tiny huge fast slow fixed cheap basic standard premium economy business first
celsius fahrenheit kelvin metric imperial morning noon evening night json csv xml plain html light dark auto manual left
right center top bottom north south east west sweet sour salty spicy mild hot cold warm dry wet round square single double
daily weekly monthly yearly once never always open closed pending done new used""".split()
UNITS = """meters kilometers miles feet inches yards centimeters millimeters grams kilograms pounds ounces tons stones
liters milliliters gallons pints cups quarts seconds minutes hours days weeks months celsius fahrenheit kelvin joules
calories watts horsepower pascals bars acres hectares bytes kilobytes megabytes gigabytes bits knots degrees radians
volts amperes newtons lumens euros dollars yen pesos rupees francs crowns kroner zloty won""".split()
WORDS = """river stone cloud summer winter garden dinner lunch coffee music paper silver golden little quiet happy lucky
early late morning bright green blue red hello world good birthday party work home weekly team project plan review call
doctor dentist milk bread eggs report first second last new old big long short northern southern city park lake hill
forest bridge tower market street school train summer trip quick brown fox lazy dog open house family friends""".split()
CITIES = """Oslo Paris London Berlin Rome Madrid Lisbon Vienna Prague Dublin Athens Cairo Tokyo Kyoto Seoul Beijing Delhi
Mumbai Lagos Nairobi Lima Quito Bogota Havana Boston Chicago Denver Dallas Seattle Austin Toronto Sydney Perth Geneva Zurich
Bern Basel Hamburg Munich Milan Turin Naples Porto Seville Krakow Warsaw Riga Tallinn Helsinki Bergen Stockholm""".split()
GENERIC_PARAMETERS = """name key id query value item input text term subject target entry code data arg q k n x ref object
field what which symbol identifier keyword token label record""".split()
NUMBER_PAIRS = """a b|x y|m n|p q|left right|first second|num1 num2|number1 number2|a1 a2|x1 x2|n1 n2|arg1 arg2|val1 val2|
value_a value_b|first_number second_number|operand1 operand2|lhs rhs|i j|u v|op_a op_b|first_value second_value|number_a number_b|
input_1 input_2|term1 term2|one two|c d|s t""".replace("\n", "").split("|")


# Whatever a name or a value may hold: what training copies must not be a few words it knows.
ANY_WORD = sorted(word for word in {*VERBS, *ATTRIBUTES, *KINDS, *ADJECTIVES, *ACTS, *OBJECTS, *FIELDS, *SWITCHES, *OPTIONS, *UNITS, *WORDS,
                   *GENERIC_PARAMETERS, *THINGS, *COLORS} if len(word) > 2 and word.isalpha())  # fmt: skip
MORE_INVENTED = 1.6  # training draws this much more made-up words than the test sets


@cache
def held(text: str) -> bool:
    """Whether this text is kept out of training."""
    return zlib.crc32(text.encode()) % HELD == 0


@cache
def _sides(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    return [w for w in words if not held(w)], [w for w in words if held(w)]


_SIDES: dict[int, tuple[list[str], list[str]]] = {}


Number = int | float


class Draw:
    """Draws words and numbers from one seeded generator, names all of one side: training's, or with `test` the other.

    Training draws more made-up words, and makes them of more: what the test sets ask is the rule, not the words.
    """

    def __init__(self, rng: random.Random, test: bool = False):
        self.rng, self.test, self.random = rng, test, rng.random

    def chance(self, share: float) -> bool:
        return self.random() < share

    def pick(self, options):
        return options[int(self.random() * len(options))]

    def any(self, *options):
        return options[int(self.random() * len(options))]

    def int(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def word(self, words: list[str], invented: float = 0.25) -> str:
        """One of `words`, or a made-up word."""
        if not self.test:
            return self.made_up() if self.random() < MORE_INVENTED * invented else self.pick(words)
        if self.random() < invented:
            return self.made_up()
        sides = _SIDES.get(id(words))
        if sides is None:
            sides = _SIDES[id(words)] = _sides(tuple(words))
        return self.pick(sides[self.test])

    def made_up(self) -> str:
        dice = 1.0 if self.test else self.random()
        while True:
            if dice < 0.3:
                text = self.pick(ANY_WORD)
            elif dice < 0.55:
                text = self.piece() + self.piece()
            elif self.random() < 0.6:
                text = invented_name(self.rng).lower()
            else:
                text = "".join(self.pick("abcdefghijklmnopqrstuvwxyz") for _ in range(self.int(2, 7)))
            if held(text) == self.test:
                return text

    def piece(self) -> str:
        """Some letters of a word, or all: names made of them split into tokens in every way."""
        word = self.pick(ANY_WORD)
        start = self.int(0, max(0, len(word) - 3))
        return word[start : start + self.int(2, 7)]

    def accept(self, make) -> str:
        """Draws texts until one is of this side."""
        while held(text := make()) != self.test:
            pass
        return text

    def joined(self, words: list[str]) -> str:
        """An identifier of words: snake_case, camelCase and others."""
        dice = self.random()
        if dice < 0.7:
            return "_".join(words)
        if dice < 0.85:
            return words[0] + "".join(w.capitalize() for w in words[1:])
        if dice < 0.9:
            return "".join(w.capitalize() for w in words)
        return self.any("-", ".", "")[:1].join(words)

    # ---- values ----

    def number(self, most: int = 9999) -> Number:
        dice = self.random()
        if dice < 0.2:
            n = self.int(0, 12)
        elif dice < 0.55:
            n = self.int(2, 99)
        elif dice < 0.8:
            n = self.int(100, min(most, 999))
        elif dice < 0.88:
            n = self.int(min(most, 1000) - 1, most)
        elif dice < 0.95:
            n = self.decimal(10)
        else:
            n = self.decimal(100)
        return -n if self.random() < 0.06 else n

    def decimal(self, scale: int) -> float:
        whole, rest = self.int(0, 120), self.int(1, scale - 1)
        while rest % 10 == 0:
            rest = self.int(1, scale - 1)
        return float(f"{whole}.{rest:0{len(str(scale)) - 1}}")

    def proper(self) -> str:
        """A name of someone or something."""
        dice = self.random()
        if dice < 0.5:
            return self.accept(lambda: invented_name(self.rng))
        if dice < 0.7:
            return self.pick(CITIES)
        if dice < 0.9:
            return self.pick(GIRLS) if dice < 0.8 else self.pick(BOYS)
        return f"{self.pick(GIRLS)} {invented_name(self.rng)}"

    def code(self) -> str:
        letters = "".join(self.pick("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(self.int(1, 3)))
        return letters + self.any("-", "", "") + str(self.int(1, 9999))

    def phrase(self) -> str:
        return " ".join(self.pick(WORDS) for _ in range(self.int(1, 3)))

    def thing(self) -> str:
        return self.pick(THINGS)

    def text(self) -> str:
        """A value that is a string."""
        if not self.test and self.random() < 0.15:
            return self.pick(ANY_WORD)
        dice = self.random()
        if dice < 0.4:
            return self.proper()
        if dice < 0.6:
            return self.phrase()
        if dice < 0.7:
            return self.thing()
        if dice < 0.78:
            return self.code()
        if dice < 0.88:
            return self.made_up()
        return self.pick(COLORS) if dice < 0.94 else self.pick(DAYS)


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
