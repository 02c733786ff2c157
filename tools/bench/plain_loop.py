#!/usr/bin/env python3
"""The peer of the batch benchmark: the fund-load challenge's baseline rules as a plain Python loop.

NDJSON on stdin, NDJSON on stdout. It is what a Python programmer writes who wants it fast and has one
process: dicts, ints, compiled expressions, a buffered stream. There is no queue, no record and nobody else to
talk to.

It decides what the specification and its edges say, with one exception that only a crafted input reaches: the
years are those of `datetime`, 0001 to 9999.
"""

import json
import re
import sys
from datetime import datetime, timezone

ATTEMPTS_A_DAY = 3
DAY_CENTS = 5_000_00
WEEK_CENTS = 20_000_00

WHITE_SPACE = " \t\n\f\r"
match_amount = re.compile(r"(?:USD\$|\$USD|USD|\$)?([0-9]+)\.([0-9]{2})").fullmatch
match_time = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(Z|[+-][0-2][0-9]:[0-5][0-9])"
).fullmatch


def digits_of(value):
    """The id without the white space around it; empty if it is none."""
    if not isinstance(value, str):
        return ""
    value = value.strip(WHITE_SPACE)
    return value if value.isascii() and value.isdigit() else ""


def cents_of(value):
    if not isinstance(value, str):
        raise ValueError("no amount")
    match = match_amount(value) or match_amount("".join(c for c in value if c not in WHITE_SPACE))
    if not match:
        raise ValueError("no amount")
    return int(match[1] + match[2])


def day_of(value):
    """The UTC date, as a number of days of which the first was a Monday."""
    if not isinstance(value, str):
        raise ValueError("no time")
    value = value.strip(WHITE_SPACE).upper()
    match = match_time(value)
    if not match:
        raise ValueError("no time")
    time = datetime.fromisoformat(value)
    if match[1] != "Z":
        time = time.astimezone(timezone.utc)
    return time.toordinal() - 1


def main():
    # An amount may have any number of digits; Python's default stops at 4,300.
    sys.set_int_max_str_digits(0)
    seen = set()
    attempts = {}
    day_cents = {}
    week_cents = {}
    output = open(sys.stdout.fileno(), "w", buffering=1 << 16, encoding="ascii", newline="\n", closefd=False)

    for line in sys.stdin.buffer:
        load_id = customer = ""
        accepted = False
        try:
            load = json.loads(line.decode())
            if not isinstance(load, dict):
                raise ValueError("no object")
            load_id = digits_of(load.get("id"))
            customer = digits_of(load.get("customer_id"))
            cents = cents_of(load.get("load_amount"))
            day = day_of(load.get("time"))
        except (ValueError, OverflowError, RecursionError):
            pass
        else:
            if load_id and customer and load_id not in seen:
                seen.add(load_id)
                on_day = customer, day
                in_week = customer, day // 7
                tried = attempts[on_day] = attempts.get(on_day, 0) + 1
                if tried <= ATTEMPTS_A_DAY:
                    of_day = day_cents.get(on_day, 0) + cents
                    of_week = week_cents.get(in_week, 0) + cents
                    if of_day <= DAY_CENTS and of_week <= WEEK_CENTS:
                        day_cents[on_day] = of_day
                        week_cents[in_week] = of_week
                        accepted = True
        verdict = "true" if accepted else "false"
        output.write(f'{{"id":"{load_id}","customer_id":"{customer}","accepted":{verdict}}}\n')
    output.flush()


if __name__ == "__main__":
    main()
