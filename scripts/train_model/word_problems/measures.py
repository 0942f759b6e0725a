"""Templates about time, distance, length, ages, groups of people and rates."""

from word_problems.core import Problem, Sampler, add, div, mul, need, sub, template
from word_problems.words import DAYS, FAMILY, FOOD, FRUIT, PARTS, PLACES, THINGS, TIMES


@template
def pages_to_read(s: Sampler) -> Problem:
    n, a, days, rest = s.person(), s.int(5, 40), s.int(2, 9), s.int(5, 150)
    total = a * days + rest
    story = s.any(
        f"{n} is reading a book of {total} pages. {n.He} reads {a} pages a day for {days} days.",
        f"A book has {total} pages. For {days} days, {n} reads {a} pages every day.",
    )
    ask = s.any("How many pages are left?", f"How many pages does {n} still have to read?")
    return s.problem(story, ask, [f"{n} reads {mul(a, days)} pages.", f"That leaves {sub(total, a * days)} pages."], rest)


@template
def pages_two_speeds(s: Sampler) -> Problem:
    n, a, k, days = s.person(), s.int(4, 40), s.pick([2, 3]), s.int(2, 6)
    first = s.int(2, 6)
    b = k * a
    story = f"{n} read {a} pages a day for {first} days. Then {n.he} read {TIMES[k]} as many pages a day for {days} days and finished the book."
    ask = s.any("How many pages does the book have?", f"How many pages did {n} read?")
    steps = [f"First {n} read {mul(a, first)} pages.", f"Then {n} read {mul(k, a)} pages a day.", f"That was {mul(b, days)} pages.", f"In all it was {add(a * first, b * days)} pages."]
    return s.problem(story, ask, steps, a * first + b * days)


@template
def trip_two_legs(s: Sampler) -> Problem:
    n, (v, w) = s.person(), (s.int(3, 70), s.int(3, 70))
    t, u = s.int(2, 8), s.int(2, 8)
    how = s.any("drives", "rides", "travels", "goes")
    story = s.any(
        f"{n} {how} {t} hours at {v} miles per hour and then {u} hours at {w} miles per hour.",
        f"On a trip {n} {how} for {t} hours at a speed of {v} miles an hour. After a break {n.he} {how} {u} more hours at {w} miles an hour.",
    )
    ask = s.any("How many miles is that in all?", f"How far does {n} get?", "How long is the trip in miles?")
    steps = [f"The first part is {mul(v, t)} miles.", f"The second part is {mul(w, u)} miles.", f"In all that is {add(v * t, w * u)} miles."]
    return s.problem(story, ask, steps, v * t + w * u)


@template
def distance_left(s: Sampler) -> Problem:
    n, v, t, rest = s.person(), s.int(3, 70), s.int(2, 9), s.int(5, 200)
    total = v * t + rest
    town = s.any("the city", "the coast", "a village", "the lake", "a friend's house")
    story = s.any(
        f"{n} is going to {town}, which is {total} miles away. {n.He} has been driving at {v} miles per hour for {t} hours.",
        f"It is {total} miles to {town}. {n} drives for {t} hours at {v} miles per hour.",
    )
    ask = s.any("How many miles are left?", f"How many miles does {n} still have to go?")
    return s.problem(story, ask, [f"{n} has driven {mul(v, t)} miles.", f"That leaves {sub(total, v * t)} miles."], rest)


@template
def daily_walk(s: Sampler) -> Problem:
    n, a, b, days = s.person(), s.int(2, 15), s.int(2, 15), s.int(2, 7)
    sport = s.any("walks", "runs", "bikes", "swims")
    unit = s.any("miles", "laps", "rounds")
    weeks = s.int(2, 5)
    story = s.any(
        f"{n} {sport} {a} {unit} every morning and {b} {unit} every evening, {days} days a week.",
        f"On {days} days of every week, {n} {sport} {a} {unit} before work and {b} {unit} after work.",
    )
    week = (a + b) * days
    ask = s.any(f"How many {unit} is that in {weeks} weeks?", f"How many {unit} are done in {weeks} weeks?")
    steps = [f"In a day it is {add(a, b)} {unit}.", f"In a week it is {mul(a + b, days)} {unit}.", f"In {weeks} weeks it is {mul(week, weeks)} {unit}."]
    return s.problem(story, ask, steps, week * weeks)


@template
def minutes_practice(s: Sampler) -> Problem:
    n, what = s.person(), s.any("piano", "violin", "tennis", "chess", "drawing", "singing", "spelling")
    a, b = s.int(5, 60), s.int(5, 60)
    (d1, d2) = s.two(DAYS)
    weeks = s.int(2, 6)
    story = s.any(
        f"{n} practices {what} for {a} minutes every {d1} and for {b} minutes every {d2}.",
        f"Every {d1} {n} spends {a} minutes on {what}, and every {d2} {b} minutes.",
    )
    ask = s.any(f"How many minutes does {n} practice in {weeks} weeks?", f"How many minutes is that in {weeks} weeks?")
    steps = [f"In a week it is {add(a, b)} minutes.", f"In {weeks} weeks it is {mul(a + b, weeks)} minutes."]
    return s.problem(story, ask, steps, (a + b) * weeks)


@template
def hours_to_minutes(s: Sampler) -> Problem:
    n, h, m = s.person(), s.int(1, 8), s.int(5, 55)
    task = s.any("homework", "cooking", "cleaning", "painting", "gardening", "reading")
    used = s.int(5, 150)
    total = 60 * h + m
    need(used < total)
    hours = "1 hour" if h == 1 else f"{h} hours"
    story = s.any(
        f"{n} has {hours} and {m} minutes for {task}. {n.He} has already used {used} minutes.",
        f"{n} plans to spend {hours} and {m} minutes on {task}. So far {n.he} has spent {used} minutes.",
    )
    ask = s.any("How many minutes are left?", f"How many minutes does {n} have left?")
    steps = [f"The hours are {mul(h, 60)} minutes.", f"In all there are {add(60 * h, m)} minutes.", f"That leaves {sub(total, used)} minutes."]
    return s.problem(story, ask, steps, total - used)


@template
def ages_future(s: Sampler) -> Problem:
    n, m = s.person(), s.person()
    a, k, years = s.int(3, 25), s.pick([2, 3, 4]), s.int(2, 20)
    b = k * a
    need(b <= 90)
    story = s.any(f"{n} is {a} years old. {m} is {TIMES[k]} as old as {n}.", f"{m} is {TIMES[k]} as old as {n}, who is {a}.")
    steps = [f"{m} is {mul(k, a)} years old."]
    if s.rng.random() < 0.5:
        ask = s.any(f"How old will {m} be in {years} years?", f"What will be {m}'s age in {years} years?")
        return s.problem(story, ask, [*steps, f"In {years} years {m} will be {add(b, years)} years old."], b + years)
    a2, b2 = a + years, b + years
    ask = s.any(f"What will be the sum of their ages in {years} years?", f"How old will they be together in {years} years?")
    steps += [f"Then {m} will be {add(b, years)} years old.", f"Then {n} will be {add(a, years)} years old.", f"Together that is {add(b2, a2)} years."]
    return s.problem(story, ask, steps, a2 + b2)


@template
def ages_chain(s: Sampler) -> Problem:
    n, m, o = s.person(), s.person(), s.person()
    a, d, e = s.int(8, 50), s.int(2, 15), s.int(2, 20)
    b = a - d
    need(b > 0)
    c = b + e
    story = s.any(
        f"{n} is {a} years old. {m} is {d} years younger than {n}. {o} is {e} years older than {m}.",
        f"{o} is {e} years older than {m}. {m} is {d} years younger than {n}. {n} is {a}.",
    )
    steps = [f"{m} is {sub(a, d)} years old.", f"{o} is {add(b, e)} years old."]
    if s.rng.random() < 0.5:
        return s.problem(story, f"How old is {o}?", steps, c)
    ask = s.any("What is the sum of their ages?", "How old are they all together?")
    return s.problem(story, ask, [*steps, f"Together that is {add(a, b, c)} years."], a + b + c)


@template
def bus_stops(s: Sampler) -> Problem:
    vehicle = s.any("bus", "train", "tram", "ferry", "boat")
    a, off, on, off2 = s.int(15, 150), s.int(2, 40), s.int(2, 40), s.int(2, 40)
    b = a - off
    c = b + on
    need(b > 0 and c > off2)
    story = s.any(
        f"A {vehicle} leaves with {a} passengers. At the first stop {off} get off and {on} get on. At the second stop {off2} get off.",
        f"There are {a} people on a {vehicle}. At the next stop {off} people leave and {on} people enter. At the stop after that {off2} people leave.",
    )
    ask = s.any(f"How many people are on the {vehicle} now?", f"How many passengers are still on the {vehicle}?")
    steps = [f"After {off} get off there are {sub(a, off)}.", f"After {on} get on there are {add(b, on)}.", f"At the end there are {sub(c, off2)}."]
    return s.problem(story, ask, steps, c - off2)


@template
def seats_in_hall(s: Sampler) -> Problem:
    rows, each, taken = s.int(4, 30), s.int(5, 30), s.int(10, 300)
    total = rows * each
    need(taken < total)
    hall = s.any("hall", "theater", "cinema", "stadium", "church")
    story = s.any(
        f"A {hall} has {rows} rows of {each} seats. {taken} seats are taken.",
        f"In a {hall} there are {rows} rows with {each} seats in each row. {taken} people are sitting there.",
    )
    ask = s.any("How many seats are free?", "How many seats are still empty?")
    return s.problem(story, ask, [f"There are {mul(rows, each)} seats.", f"Then {sub(total, taken)} seats are free."], total - taken)


@template
def boys_and_girls(s: Sampler) -> Problem:
    part, place = s.pick(list(PARTS)), s.any("school", "club", "camp", "choir", "team")
    total = part * s.int(4, 60)
    girls = total // part
    boys = total - girls
    k = s.int(2, 40)
    need(total <= 300 and k < boys)
    story = s.any(
        f"There are {total} children in a {place}. {PARTS[part].capitalize()} of them are girls and the rest are boys. {k} of the boys wear glasses.",
        f"A {place} has {total} children, and {PARTS[part]} of them are girls. Of the boys, {k} wear glasses.",
    )
    ask = s.any("How many boys do not wear glasses?", "How many of the boys wear no glasses?")
    steps = [f"There are {div(total, part)} girls.", f"There are {sub(total, girls)} boys.", f"Without glasses there are {sub(boys, k)} boys."]
    return s.problem(story, ask, steps, boys - k)


@template
def machine_rate(s: Sampler) -> Problem:
    x, place = s.pick(THINGS), s.any("factory", "workshop", "plant", "bakery")
    m, rate, h = s.int(2, 9), s.int(2, 30), s.int(2, 9)
    story = s.any(
        f"A {place} has {m} machines. Each machine makes {rate} {x} an hour.",
        f"Each machine in a {place} makes {rate} {x} every hour. There are {m} machines.",
    )
    ask = s.any(f"How many {x} are made in {h} hours?", f"How many {x} does the {place} make in {h} hours?")
    return s.problem(story, ask, [f"In an hour they make {mul(m, rate)} {x}.", f"In {h} hours they make {mul(m * rate, h)} {x}."], m * rate * h)


@template
def work_rate_together(s: Sampler) -> Problem:
    n, m, x = s.person(), s.person(), s.pick(THINGS)
    a, b, h = s.int(2, 25), s.int(2, 25), s.int(2, 12)
    verb = s.any("packs", "makes", "paints", "checks", "washes", "sorts")
    total = (a + b) * h
    if s.rng.random() < 0.5:
        story = f"{n} {verb} {a} {x} an hour and {m} {verb} {b} {x} an hour. They work together."
        ask = s.any(f"How many hours do they need for {total} {x}?", f"In how many hours do they finish {total} {x}?")
        return s.problem(story, ask, [f"Together it is {add(a, b)} {x} an hour.", f"They need {div(total, a + b)} hours."], h)
    story = f"{n} {verb} {a} {x} an hour and {m} {verb} {b} {x} an hour. Both work for {h} hours."
    ask = s.any(f"How many {x} is that in all?", "How many do they get done in all?")
    return s.problem(story, ask, [f"Together it is {add(a, b)} {x} an hour.", f"In {h} hours it is {mul(a + b, h)} {x}."], total)


@template
def rope_pieces(s: Sampler) -> Problem:
    n, what, unit = s.person(), s.any("rope", "ribbon", "wire", "string", "board"), s.any("inches", "feet", "meters")
    size, pieces, off = s.int(2, 20), s.int(2, 25), s.int(2, 40)
    total = size * pieces + off
    need(total <= 400)
    story = s.any(
        f"{n} has a {what} of {total} {unit}. {n.He} cuts off {off} {unit} and cuts the rest into pieces of {size} {unit}.",
        f"A {what} is {total} {unit} long. {n} throws {off} {unit} of it away and cuts what remains into pieces of {size} {unit}.",
    )
    ask = s.any("How many pieces are there?", f"How many pieces does {n} get?")
    return s.problem(story, ask, [f"The rest is {sub(total, off)} {unit}.", f"That gives {div(total - off, size)} pieces."], pieces)


@template
def fence_around(s: Sampler) -> Problem:
    n, a, b, p = s.person(), s.int(3, 40), s.int(3, 40), s.int(2, 8)
    what = s.any("garden", "yard", "field", "park")
    story = s.any(
        f"{n} puts a fence around a {what} that is {a} feet long and {b} feet wide. The fence costs ${p} a foot.",
        f"A {what} is {a} feet long and {b} feet wide. {n} builds a fence around it, which costs ${p} per foot.",
    )
    ask = s.any("How much does the fence cost?", f"How many dollars does {n} pay for the fence?")
    half = a + b
    steps = [f"Two sides are {add(a, b)} feet.", f"All sides are {mul(2, half)} feet.", f"The fence costs {mul(2 * half, p)} dollars."]
    return s.problem(story, ask, steps, 2 * half * p)


@template
def tank_filling(s: Sampler) -> Problem:
    what = s.any("tank", "pool", "barrel", "pond")
    have, rate, minutes, leak = s.int(5, 150), s.int(4, 30), s.int(2, 20), s.int(1, 9)
    need(leak < rate)
    gain = rate - leak
    story = f"A {what} holds {have} gallons of water. A pipe adds {rate} gallons a minute, but {leak} {'gallon leaks' if leak == 1 else 'gallons leak'} out every minute."
    ask = s.any(f"How many gallons are in the {what} after {minutes} minutes?", f"How much water does the {what} hold after {minutes} minutes?")
    steps = [f"Each minute adds {sub(rate, leak)} gallons.", f"In {minutes} minutes that is {mul(gain, minutes)} gallons.", f"Then it holds {add(have, gain * minutes)} gallons."]
    return s.problem(story, ask, steps, have + gain * minutes)


@template
def teams_of_players(s: Sampler) -> Problem:
    place, size, teams, absent = s.any("school", "camp", "club", "village"), s.int(3, 12), s.int(2, 15), s.int(2, 25)
    boys = s.int(5, 120)
    total = size * teams + absent
    girls = total - boys
    need(girls > 4)
    story = s.any(
        f"{boys} boys and {girls} girls signed up for games at a {place}. {absent} of them are ill. The others form teams of {size}.",
        f"A {place} has {boys} boys and {girls} girls. {absent} children stay at home and the rest make teams of {size}.",
    )
    ask = s.any("How many teams are there?", "How many teams can they form?")
    steps = [f"There are {add(boys, girls)} children.", f"{sub(total, absent)} children play.", f"They form {div(total - absent, size)} teams."]
    return s.problem(story, ask, steps, teams)


@template
def scores_of_games(s: Sampler) -> Problem:
    n, m = s.person(), s.person()
    a, b, d = s.int(2, 30), s.int(2, 30), s.int(2, 20)
    c = a + b
    k = s.pick([2, 3])
    story = s.any(
        f"{n} scored {a} points in the first game and {b} points in the second. {m} scored {TIMES[k]} as many points as {n} did in both games, minus {d}.",
        f"In two games {n} scored {a} and {b} points. {m} scored {d} points less than {TIMES[k]} {n}'s total.",
    )
    need(d < k * c)
    ask = s.any(f"How many points did {m} score?", f"What is {m}'s score?")
    steps = [f"{n} scored {add(a, b)} points.", f"{TIMES[k].capitalize()} that is {mul(k, c)} points.", f"{m} scored {sub(k * c, d)} points."]
    return s.problem(story, ask, steps, k * c - d)


@template
def average_of_three(s: Sampler) -> Problem:
    n, what = s.person(), s.any("tests", "games", "races", "rounds")
    mean, a, b = s.int(5, 95), s.int(5, 95), s.int(5, 95)
    c = 3 * mean - a - b
    need(5 <= c <= 100)
    story = s.any(f"{n} scored {a}, {b} and {c} points in three {what}.", f"In three {what} {n} got {a} points, {b} points and {c} points.")
    ask = s.any(f"What is {n}'s average score?", "What is the average number of points?")
    return s.problem(story, ask, [f"In all that is {add(a, b, c)} points.", f"The average is {div(a + b + c, 3)} points."], mean)


@template
def percent_of_people(s: Sampler) -> Problem:
    place, tenths = s.pick(PLACES), s.int(1, 9)
    total, _ = s.tens(20, 500), s.int(3, 60)
    some = total // 10 * tenths
    story = s.any(
        f"{total} people visited a {place} on one day. {tenths * 10}% of them were adults and the rest were children.",
        f"A {place} had {total} visitors, of whom {tenths * 10}% were adults. All others were children.",
    )
    ask = s.any("How many children were there?", "How many of the visitors were children?")
    steps = [f"10% of them are {div(total, 10)} people.", f"The adults were {mul(total // 10, tenths)} people.", f"The children were {sub(total, some)} people."]
    return s.problem(story, ask, steps, total - some)


@template
def recipe_scaled(s: Sampler) -> Problem:
    n, x, y = s.person(), s.pick(FOOD), s.any("eggs", "cups of flour", "cups of milk", "spoons of sugar")
    per, need_, times = s.int(2, 15), s.int(2, 9), s.int(2, 15)
    have = s.int(1, 30)
    total = times * need_
    need(have < total)
    story = s.any(
        f"A recipe for {per} {x} needs {need_} {y}. {n} wants to make {per * times} {x} and already has {have} {y}.",
        f"{n} needs {need_} {y} for every {per} {x}. {n.He} has {have} {y} and wants to make {per * times} {x}.",
    )
    ask = s.any(f"How many more {y} does {n} need?", f"How many {y} must {n} still get?")
    steps = [f"{n} makes the recipe {div(per * times, per)} times.", f"That takes {mul(times, need_)} {y}.", f"{n} still needs {sub(total, have)} {y}."]
    return s.problem(story, ask, steps, total - have)


@template
def height_growth(s: Sampler) -> Problem:
    what, a, g, y = s.any("tree", "plant", "vine", "bush", "sunflower"), s.int(3, 90), s.int(2, 20), s.int(2, 12)
    cut = s.int(2, 30)
    story = s.any(
        f"A {what} is {a} inches tall. It grows {g} inches every month for {y} months. Then {cut} inches are cut off.",
        f"A {what} of {a} inches grows {g} inches a month. After {y} months someone cuts off {cut} inches.",
    )
    ask = s.any(f"How tall is the {what} then?", f"How many inches tall is the {what} at the end?")
    total = a + g * y
    need(cut < total)
    steps = [f"It grows {mul(g, y)} inches.", f"Then it is {add(a, g * y)} inches tall.", f"At the end it is {sub(total, cut)} inches tall."]
    return s.problem(story, ask, steps, total - cut)


@template
def family_cups(s: Sampler) -> Problem:
    n, f, what = s.person(), s.pick(FAMILY), s.any("cups of tea", "glasses of water", "cups of coffee", "bottles of juice")
    a, d, days = s.int(2, 9), s.int(1, 5), s.int(2, 14)
    b = a + d
    story = f"{n} drinks {a} {what} a day. {n.His} {f} drinks {d} more a day than {n}."
    ask = s.any(f"How many {what} do they drink together in {days} days?", f"How many {what} do both drink in {days} days?")
    steps = [f"The {f} drinks {add(a, d)} a day.", f"Together they drink {add(a, b)} a day.", f"In {days} days they drink {mul(a + b, days)}."]
    return s.problem(story, ask, steps, (a + b) * days)


@template
def orchard_trees(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(FRUIT)
    trees, each, bad, box = s.int(2, 12), s.int(5, 40), s.int(2, 40), s.int(2, 12)
    good = trees * each - bad
    need(good > 0 and good % box == 0 and good // box <= 60)
    story = f"{n} picks {each} {x} from each of {trees} trees. {bad} of them are bad. {n.He} packs the good ones into bags of {box}."
    ask = s.any("How many bags are there?", f"How many bags does {n} fill?")
    steps = [f"{n} picks {mul(trees, each)} {x}.", f"{sub(trees * each, bad)} {x} are good.", f"They fill {div(good, box)} bags."]
    return s.problem(story, ask, steps, good // box)


@template(held_out=True)
def elevator_trips(s: Sampler) -> Problem:
    men, women, size, trips = s.int(5, 60), s.int(5, 60), s.int(3, 12), s.int(2, 12)
    need(men + women == size * trips)
    story = f"An elevator carries {size} people at a time. {men} men and {women} women wait in front of it."
    steps = [f"There are {add(men, women)} people.", f"That takes {div(men + women, size)} trips."]
    return s.problem(story, "How many trips does it take to carry all of them?", steps, trips)


@template(held_out=True)
def phone_battery(s: Sampler) -> Problem:
    n, drop, hours, gain = s.person(), s.int(2, 9), s.int(2, 8), s.int(5, 40)
    start = s.int(50, 100)
    low = start - drop * hours
    need(low > 0 and low + gain <= 100)
    story = f"{n}'s phone is at {start} percent. It loses {drop} percent an hour for {hours} hours. Then {n} charges it and it gains {gain} percent."
    steps = [f"It loses {mul(drop, hours)} percent.", f"Then it is at {sub(start, drop * hours)} percent.", f"At the end it is at {add(low, gain)} percent."]
    return s.problem(story, "At how many percent is the phone now?", steps, low + gain)


@template(held_out=True)
def snow_shovel(s: Sampler) -> Problem:
    _, a, d, k = s.person(), s.int(2, 20), s.int(2, 20), s.pick([2, 3, 4])
    b = a + d
    c = k * b
    (d1, d2, d3) = s.three(DAYS)
    story = f"{a} inches of snow fell on {d1}. On {d2} it was {d} inches more than on {d1}, and on {d3} it was {TIMES[k]} as much as on {d2}."
    steps = [f"On {d2} it was {add(a, d)} inches.", f"On {d3} it was {mul(k, b)} inches.", f"In all it was {add(a, b, c)} inches."]
    return s.problem(story, "How many inches of snow fell on the three days?", steps, a + b + c)


@template(held_out=True)
def school_trip_buses(s: Sampler) -> Problem:
    classes, each, teachers, size = s.int(2, 8), s.int(10, 30), s.int(2, 12), s.int(10, 50)
    total = classes * each + teachers
    need(total % size == 0)
    story = f"{classes} classes of {each} students and {teachers} teachers go on a trip. Each bus takes {size} people."
    steps = [f"There are {mul(classes, each)} students.", f"In all there are {add(classes * each, teachers)} people.", f"They need {div(total, size)} buses."]
    return s.problem(story, "How many buses do they need?", steps, total // size)


@template(held_out=True)
def cars_washed(s: Sampler) -> Problem:
    n, (d1, d2), part = s.person(), s.two(DAYS), s.pick(list(PARTS))
    a = part * s.int(2, 20)
    p = s.int(2, 9)
    total = a + a // part
    story = f"{n} washed {a} cars on {d1} and {PARTS[part]} as many on {d2}. {n.He} got ${p} for each car."
    steps = [f"On {d2} {n} washed {div(a, part)} cars.", f"In all {n} washed {add(a, a // part)} cars.", f"{n} got {mul(total, p)} dollars."]
    return s.problem(story, f"How many dollars did {n} get in all?", steps, total * p)
