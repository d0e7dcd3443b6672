#!/usr/bin/env python3
"""formats.py: whether what pg_accord writes is what others read.

  formats.py make N SEED    N random values, a line of JSON each
  formats.py check          reads lines of JSON, {"value", "form", "repeat", "xml"}, from standard input; tells those
                            that Python's own parsers read as something else, and how many were right

What a value should be read as is worked out here anew, from the rules in the README.
"""
import json
import random
import sys
import xml.etree.ElementTree as ElementTree
from urllib.parse import parse_qsl

TEXT = "aZ09 .-_~*'()&=+%[]{}<>/?#\"\\;,:@!$^|`\n\t\r\u00e4\u20ac\U0001F600\u00a0\u2028\ufffd"


def make_text(dice):
    return "".join(dice.choice(TEXT) for _ in range(dice.randrange(8)))


def make_value(dice, depth):
    kind = dice.randrange(7 if depth > 0 else 5)
    if kind == 0:
        return None
    if kind == 1:
        return dice.random() < 0.5
    if kind == 2:
        return dice.choice([0, -1, 1.5, 12345678901234567890, -0.001])
    if kind < 5:
        return make_text(dice)
    if kind == 5:
        return [make_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    names = ["n%d" % i for i in range(4)]
    return {dice.choice(names) + make_text(dice) if dice.random() < 0.3 else
            dice.choice(names): make_value(dice, depth - 1)
            for _ in range(dice.randrange(5))}


def scalar(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)


def fields(value, name, arrays):
    """The fields of a form that a value should be."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from fields(child, key if name is None else "%s[%s]" % (name, key), arrays)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from fields(child, name if arrays == "repeat" else "%s[%d]" % (name, i), arrays)
    else:
        yield name, scalar(value)


def numbers(text):
    """PostgreSQL and Python write numbers differently."""
    try:
        return repr(float(text)) if text.strip() == text and not text.startswith("+") else text
    except ValueError:
        return text


def same(pairs, others):
    return sorted((n, numbers(v)) for n, v in pairs) == sorted((n, numbers(v)) for n, v in others)


def tree(element):
    """What a document says, in an order of its own."""
    return (element.tag, numbers(element.text or ""), sorted((tree(child) for child in element), key=repr))


def expected(name, value):
    """The elements that a member should be."""
    if isinstance(value, list):
        return [made for child in value for made in expected(name, child)]
    if isinstance(value, dict):
        return [(name, "", sorted((made for key, child in value.items() for made in expected(key, child)), key=repr))]
    return [(name, numbers(scalar(value)), [])]


def plain(value):
    """Whether all its names may be those of elements."""
    if isinstance(value, dict):
        return all(key.isalnum() and key.isascii() and plain(child) for key, child in value.items())
    return not isinstance(value, list) or all(plain(child) for child in value)


def check(lines):
    right = 0
    for line in lines:
        row = json.loads(line)
        value = row["value"]
        wrong = [what for what in ("form", "repeat")
                 if not same(parse_qsl(row[what], keep_blank_values=True), fields(value, None, what))]
        if plain(value) and tree(ElementTree.fromstring(row["xml"].encode("utf-8"))) != expected("root", value)[0]:
            wrong.append("xml")
        if wrong:
            print("wrong as %s: %s" % (", ".join(wrong), line))
        else:
            right += 1
    print("%d right" % right)


if sys.argv[1] == "make":
    chance = random.Random(int(sys.argv[3]))
    for _ in range(int(sys.argv[2])):
        print(json.dumps({"n%d" % i: make_value(chance, 4) for i in range(chance.randrange(4))}))
else:
    check(sys.stdin)
