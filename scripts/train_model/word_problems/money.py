"""Templates about buying, selling, earning and saving. Amounts are whole dollars."""

from word_problems.core import Problem, Sampler, add, div, mul, need, sub, template
from word_problems.words import (
    CLOTHES,
    COUNT,
    DAYS,
    FAMILY,
    FOOD,
    FRUIT,
    PARTS,
    SUPPLIES,
    THINGS,
    TIMES,
    TOYS,
)


@template
def two_purchases(s: Sampler) -> Problem:
    n, (x, y) = s.person(), s.two(THINGS)
    a, p, b, q = s.int(2, 12), s.int(2, 25), s.int(2, 12), s.int(2, 25)
    story = s.any(
        f"{n} buys {a} {x} for ${p} each and {b} {y} for ${q} each.",
        f"{n} went to the store and bought {a} {x} at ${p} each. {n.He} also bought {b} {y} at ${q} each.",
        f"One of the {x} costs ${p} and one of the {y} costs ${q}. {n} buys {a} {x} and {b} {y}.",
    )
    ask = s.any(f"How much does {n} spend in all?", f"How many dollars does {n} pay in total?", "What is the total cost?")
    steps = [f"The {x} cost {mul(a, p)} dollars.", f"The {y} cost {mul(b, q)} dollars.", f"In all that is {add(a * p, b * q)} dollars."]
    return s.problem(story, ask, steps, a * p + b * q)


@template
def change_from_bill(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(THINGS)
    a, p, paid = s.int(2, 12), s.int(2, 30), s.tens(20, 400)
    need(a * p < paid <= a * p + 150)
    story = s.any(
        f"{n} buys {a} {x} that cost ${p} each. {n.He} pays with ${paid}.",
        f"{n} has ${paid}. {n.He} buys {a} {x} for ${p} each.",
        f"The price of {x} is ${p} each. {n} takes {a} of them and hands over ${paid}.",
    )
    ask = s.any(f"How much money does {n} have left?", f"How much change does {n} get?", f"How many dollars does {n} get back?")
    return s.problem(story, ask, [f"The {x} cost {mul(a, p)} dollars.", f"What is left is {sub(paid, a * p)} dollars."], paid - a * p)


@template
def three_items_left(s: Sampler) -> Problem:
    n, (x, y, z) = s.person(), s.three(CLOTHES)
    p, q, r, have = s.int(5, 60), s.int(5, 60), s.int(5, 60), s.tens(50, 300)
    need(p + q + r <= have)
    one = [f"the {x} for ${p}", f"the {y} for ${q}", f"the {z} for ${r}"]
    story = s.any(
        f"{n} has ${have}. {n.He} buys {one[0]}, {one[1]} and {one[2]}.",
        f"{n} went shopping with ${have}. {n.He} paid ${p} for {x}, ${q} for {y} and ${r} for {z}.",
    )
    ask = s.any("How much money is left?", f"How many dollars does {n} still have?", f"How much does {n} have left?")
    steps = [f"{n} spends {add(p, q, r)} dollars.", f"What is left is {sub(have, p + q + r)} dollars."]
    return s.problem(story, ask, steps, have - p - q - r)


@template
def weekly_wage(s: Sampler) -> Problem:
    n = s.person()
    rate, hours, days = s.int(5, 25), s.int(2, 9), s.int(2, 6)
    story = s.any(
        f"{n} earns ${rate} an hour. {n.He} works {hours} hours a day, {days} days a week.",
        f"{n} works {hours} hours each day for {days} days every week and is paid ${rate} per hour.",
    )
    ask = s.any(f"How much does {n} earn in a week?", f"How many dollars does {n} make each week?")
    h = hours * days
    return s.problem(story, ask, [f"{n} works {mul(hours, days)} hours a week.", f"{n} earns {mul(h, rate)} dollars."], h * rate)


@template
def wage_and_tips(s: Sampler) -> Problem:
    n, rate, hours, tips = s.person(), s.int(6, 30), s.int(2, 12), s.int(5, 90)
    job = s.any("waiter", "driver", "barber", "cook", "guide")
    story = s.any(
        f"{n} works as a {job} for ${rate} an hour. Today {n.he} worked {hours} hours and got ${tips} in tips.",
        f"As a {job}, {n} is paid ${rate} per hour. {n.He} worked for {hours} hours and received ${tips} in tips.",
    )
    ask = s.any(f"How much did {n} earn today?", f"How much money did {n} make in all?")
    steps = [f"The hours pay {mul(rate, hours)} dollars.", f"With tips {n} earned {add(rate * hours, tips)} dollars."]
    return s.problem(story, ask, steps, rate * hours + tips)


@template
def saving_for(s: Sampler) -> Problem:
    n, thing = s.person(), s.any("bike", "phone", "guitar", "tent", "camera", "tablet", "skateboard", "desk")
    weekly, weeks, have = s.int(3, 40), s.int(2, 15), s.int(5, 150)
    cost = have + weekly * weeks
    need(cost <= 700)
    story = s.any(
        f"{n} wants to buy a {thing} that costs ${cost}. {n.He} already has ${have} and saves ${weekly} every week.",
        f"A {thing} costs ${cost}. {n} has ${have} and can save ${weekly} a week.",
    )
    ask = s.any(f"How many weeks must {n} save?", f"In how many weeks can {n} buy the {thing}?")
    steps = [f"{n} still needs {sub(cost, have)} dollars.", f"That takes {div(cost - have, weekly)} weeks."]
    return s.problem(story, ask, steps, weeks)


@template
def discount_part(s: Sampler) -> Problem:
    n, x, part = s.person(), s.pick(CLOTHES), s.pick(list(PARTS))
    price, count = part * s.int(2, 25), s.int(2, 9)
    story = s.any(
        f"The {x} in a store cost ${price} each. Today the price is {PARTS[part]} off. {n} buys {count} of them.",
        f"{n} buys {count} {x}. Each normally costs ${price}, but there is a sale with {PARTS[part]} off.",
    )
    off, new = price // part, price - price // part
    ask = s.any(f"How much does {n} pay?", f"How many dollars does {n} spend?")
    steps = [f"The discount is {div(price, part)} dollars.", f"Each costs {sub(price, off)} dollars.", f"{n} pays {mul(count, new)} dollars."]
    return s.problem(story, ask, steps, count * new)


@template
def percent_off(s: Sampler) -> Problem:
    n, thing = s.person(), s.any("coat", "lamp", "chair", "table", "watch", "bag", "radio", "clock")
    price, tenths = s.tens(20, 400), s.int(1, 8)
    story = s.any(
        f"{n} wants a {thing} that costs ${price}. The store gives a {tenths * 10}% discount.",
        f"A {thing} costs ${price}. {n} has a coupon for {tenths * 10}% off.",
    )
    off = price // 10 * tenths
    ask = s.any(f"How much does {n} pay for the {thing}?", f"What does the {thing} cost {n} now?")
    steps = [f"10% of the price is {div(price, 10)} dollars.", f"The discount is {mul(price // 10, tenths)} dollars.", f"{n} pays {sub(price, off)} dollars."]
    return s.problem(story, ask, steps, price - off)


@template
def profit_on_sales(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(FOOD)
    count, price, cost = s.int(5, 40), s.int(2, 12), s.int(5, 90)
    need(cost < count * price)
    story = s.any(
        f"{n} sells {count} {x} for ${price} each. Making them cost ${cost}.",
        f"{n} spent ${cost} on ingredients and made {count} {x}. {n.He} sold them all for ${price} each.",
    )
    ask = s.any(f"How much profit did {n} make?", f"What is {n}'s profit?")
    steps = [f"The sales bring {mul(count, price)} dollars.", f"The profit is {sub(count * price, cost)} dollars."]
    return s.problem(story, ask, steps, count * price - cost)


@template
def share_the_bill(s: Sampler) -> Problem:
    n, people = s.person(), s.int(2, 8)
    a, b, each = s.int(10, 90), s.int(10, 90), s.int(5, 40)
    c = people * each - a - b
    need(5 <= c <= 90)
    meal = s.any("dinner", "lunch", "breakfast")
    story = f"{n} and {people - 1} friends go out for {meal}. The food costs ${a}, the drinks cost ${b} and the desserts cost ${c}. They split the bill equally."
    if people == 2:
        story = story.replace("1 friends go", "a friend go")
    ask = s.any("How much does each of them pay?", "How many dollars is each share?")
    steps = [f"The bill is {add(a, b, c)} dollars.", f"Each pays {div(a + b + c, people)} dollars."]
    return s.problem(story, ask, steps, each)


@template
def twice_the_price(s: Sampler) -> Problem:
    n, (x, y) = s.person(), s.two(["coat", "lamp", "chair", "table", "watch", "bag", "radio", "clock", "bike", "desk"])
    p, k = s.int(5, 90), s.pick(list(TIMES))
    story = s.any(
        f"{n} buys a {x} for ${p} and a {y} that costs {TIMES[k]} as much as the {x}.",
        f"A {x} costs ${p}. A {y} costs {TIMES[k]} as much. {n} buys both.",
    )
    ask = s.any("How much do they cost together?", f"How much does {n} spend in total?")
    steps = [f"The {y} costs {mul(k, p)} dollars.", f"Together they cost {add(p, k * p)} dollars."]
    return s.problem(story, ask, steps, p + k * p)


@template
def cheaper_item(s: Sampler) -> Problem:
    n, (x, y) = s.person(), s.two(["coat", "lamp", "chair", "table", "watch", "bag", "radio", "clock", "bike", "desk"])
    p, d = s.int(20, 300), s.int(3, 90)
    need(d < p)
    more = s.rng.random() < 0.5
    story = f"{n} buys a {x} for ${p}. {n.He} also buys a {y} that costs ${d} {'more' if more else 'less'} than the {x}."
    q = p + d if more else p - d
    step = add(p, d) if more else sub(p, d)
    ask = s.any("How much does everything cost?", f"How much does {n} spend in all?")
    return s.problem(story, ask, [f"The {y} costs {step} dollars.", f"In all that is {add(p, q)} dollars."], p + q)


@template
def earn_two_days(s: Sampler) -> Problem:
    n, x, (d1, d2) = s.person(), s.pick(FRUIT), s.two(DAYS)
    a, more, p = s.int(3, 40), s.int(2, 30), s.int(2, 9)
    story = s.any(
        f"{n} sells {x} for ${p} each. On {d1} {n.he} sold {a} and on {d2} {n.he} sold {more} more than on {d1}.",
        f"On {d1}, {n} sold {a} {x}. On {d2}, {n.he} sold {more} more than on {d1}. Each was sold for ${p}.",
    )
    b = a + more
    ask = s.any(f"How much money did {n} make on both days?", f"How many dollars did {n} earn in total?")
    steps = [f"On {d2} {n} sold {add(a, more)}.", f"On both days {n} sold {add(a, b)}.", f"That brings {mul(a + b, p)} dollars."]
    return s.problem(story, ask, steps, (a + b) * p)


@template
def allowance_spent(s: Sampler) -> Problem:
    n, part, weeks = s.person(), s.pick(list(PARTS)), s.int(2, 10)
    weekly = part * s.int(2, 15)
    story = s.any(
        f"{n} gets ${weekly} of pocket money every week. {n.He} spends {PARTS[part]} of it and saves the rest.",
        f"Every week {n} receives an allowance of ${weekly} and spends {PARTS[part]} of it. The rest is saved.",
    )
    spent = weekly // part
    ask = s.any(f"How much does {n} save in {weeks} weeks?", f"How much money will {n} have saved after {weeks} weeks?")
    steps = [f"Each week {n} spends {div(weekly, part)} dollars.", f"Each week {n} saves {sub(weekly, spent)} dollars.", f"In {weeks} weeks that is {mul(weekly - spent, weeks)} dollars."]
    return s.problem(story, ask, steps, (weekly - spent) * weeks)


@template
def months_of_payment(s: Sampler) -> Problem:
    n, thing = s.person(), s.any("sofa", "fridge", "computer", "piano", "television", "scooter")
    down, monthly, months = s.int(20, 200), s.int(10, 80), s.int(2, 12)
    total = down + monthly * months
    story = f"{n} buys a {thing} for ${total}. {n.He} pays ${down} at once and the rest in {months} equal monthly payments."
    ask = s.any("How much is each payment?", f"How many dollars does {n} pay each month?")
    steps = [f"The rest is {sub(total, down)} dollars.", f"Each payment is {div(total - down, months)} dollars."]
    return s.problem(story, ask, steps, monthly)


@template
def gift_from_family(s: Sampler) -> Problem:
    n, (f, g) = s.person(), s.two(FAMILY)
    have, k, extra = s.int(5, 90), s.pick(list(TIMES)), s.int(5, 60)
    a = s.int(5, 60)
    story = f"{n} had ${have}. {n.His} {f} gave {n.him} ${a} and {n.his} {g} gave {n.him} {TIMES[k]} as much as {n.his} {f}. "
    story += f"Then {n} spent ${extra}."
    total = have + a + k * a
    ask = s.any(f"How much money does {n} have now?", "How many dollars are left?")
    steps = [f"The {g} gave {mul(k, a)} dollars.", f"{n} had {add(have, a, k * a)} dollars.", f"After spending {n} has {sub(total, extra)} dollars."]
    return s.problem(story, ask, steps, total - extra)


@template
def tickets_family(s: Sampler) -> Problem:
    n, adults, kids = s.person(), s.int(2, 9), s.int(2, 12)
    p, q = s.int(6, 30), s.int(2, 15)
    place = s.any("zoo", "museum", "theater", "circus", "aquarium", "cinema", "fair")
    story = s.any(
        f"Tickets for the {place} cost ${p} for an adult and ${q} for a child. A group of {adults} adults and {kids} children goes to the {place}.",
        f"{n} takes a group of {adults} adults and {kids} children to the {place}. An adult ticket is ${p} and a child ticket is ${q}.",
    )
    ask = s.any("How much do the tickets cost in all?", "How many dollars do they pay for tickets?")
    steps = [f"The adults pay {mul(adults, p)} dollars.", f"The children pay {mul(kids, q)} dollars.", f"In all that is {add(adults * p, kids * q)} dollars."]
    return s.problem(story, ask, steps, adults * p + kids * q)


@template
def price_per_pack(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(SUPPLIES)
    size, packs, p = s.int(2, 12), s.int(2, 12), s.int(2, 20)
    total = size * packs
    story = s.any(
        f"{n} needs {total} {x}. They are sold in packs of {size} and each pack costs ${p}.",
        f"A pack of {size} {x} costs ${p}. {n} wants to have {total} {x}.",
    )
    ask = s.any(f"How much will {n} pay?", f"How much do the {x} cost?")
    return s.problem(story, ask, [f"{n} needs {div(total, size)} packs.", f"They cost {mul(packs, p)} dollars."], packs * p)


@template(held_out=True)
def price_raise_left(s: Sampler) -> Problem:
    n, x = s.person(), s.pick(TOYS)
    p, up, count, have = s.int(3, 20), s.int(1, 10), s.int(2, 8), s.tens(50, 300)
    need((p + up) * count <= have)
    story = f"Last year {x} cost ${p} each. This year each costs ${up} more. {n} has ${have} and buys {count} {x} this year."
    new = p + up
    ask = f"How much money does {n} have left?"
    steps = [f"Now each costs {add(p, up)} dollars.", f"The {x} cost {mul(count, new)} dollars.", f"What is left is {sub(have, count * new)} dollars."]
    return s.problem(story, ask, steps, have - count * new)


@template(held_out=True)
def two_jobs(s: Sampler) -> Problem:
    n, h1, r1, h2, r2 = s.person(), s.int(2, 12), s.int(5, 20), s.int(2, 12), s.int(5, 20)
    story = f"{n} walks dogs for ${r1} an hour and washes cars for ${r2} an hour. This week {n.he} walked dogs for {h1} hours and washed cars for {h2} hours."
    ask = f"How much did {n} earn this week?"
    steps = [f"The dogs bring {mul(h1, r1)} dollars.", f"The cars bring {mul(h2, r2)} dollars.", f"In all that is {add(h1 * r1, h2 * r2)} dollars."]
    return s.problem(story, ask, steps, h1 * r1 + h2 * r2)


@template(held_out=True)
def lunch_for_group(s: Sampler) -> Problem:
    n, x, people, each, p = s.person(), s.pick(FOOD), s.int(3, 12), s.int(2, 4), s.int(2, 9)
    story = f"{n} orders lunch for {people} people. Each person eats {COUNT[each]} {x} and one of the {x} costs ${p}."
    ask = f"How many dollars does {n} pay for lunch?"
    total = people * each
    return s.problem(story, ask, [f"They eat {mul(people, each)} {x}.", f"{n} pays {mul(total, p)} dollars."], total * p)
