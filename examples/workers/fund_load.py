#!/usr/bin/env python3
"""The fund-load challenge as a worker: a serial handler whose whole memory is its lane's state.

The same decisions, byte for byte, as the functions in tools/fund-load. `COFFERDAM_HANDLER` chooses the rules: `fund_load_exp`
has those of the experiment, any other name the baseline's.
"""
import json
import os
import re
import sys
from datetime import date

ATTEMPTS_A_DAY, DAY_CENTS, WEEK_CENTS, PRIME_CENTS = 3, 500_000, 2_000_000, 999_900
SPACE = " \t\n\f\r"
AMOUNT = re.compile(r"(?:USD\$|\$USD|USD|\$)?([0-9]+)\.([0-9]{2})")
TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def digits(value):
    """A trimmed text of digits, else nothing."""
    text = value.strip(SPACE) if isinstance(value, str) else ""
    return text if re.fullmatch("[0-9]+", text) else ""


def cents(value):
    match = AMOUNT.fullmatch("".join(c for c in value if c not in SPACE)) if isinstance(value, str) else None
    return int(match[1] + match[2]) if match else None


def utc_day(value):
    """Days since 0001-01-01, of which the first is 1, in UTC."""
    match = TIME.fullmatch(value.strip(SPACE)) if isinstance(value, str) else None
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    try:
        # Python has no year 0; the calendar repeats after 400.
        days = date(year or 400, month, day).toordinal() - (0 if year else 146_097)
    except ValueError:
        return None
    hours, minutes = int(match[8] or 0), int(match[9] or 0)
    if hour > 23 or minute > 59 or second > 59 or hours > 23 or minutes > 59:
        return None
    offset = hours * 60 + minutes
    return (days * 1_440 + hour * 60 + minute + (offset if match[7] == "-" else -offset)) // 1_440


def is_prime(n):
    """Below 2^64 (Sorenson, Webster 2015); what is larger is taken as not prime."""
    witnesses = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or n >= 1 << 64:
        return False
    for p in witnesses:
        if n % p == 0:
            return n == p
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    for base in witnesses:
        x = pow(base, (n - 1) >> twos, n)
        if x not in (1, n - 1) and not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


def accepts(state, changes, load, experiment):
    """Decides one load; what it changes stands in `changes`."""
    number, customer, amount, day = load
    get = lambda key: changes.get(key, state.get(key))
    if get(f"i:{number}") is not None:
        return False
    changes[f"i:{number}"] = ""
    weekday = (day + 6) % 7
    day_key, week_key, prime_key = f"d:{customer}:{day}", f"w:{customer}:{day - weekday}", f"p:{day}"
    attempts, of_day = map(int, (get(day_key) or "0 0").split())
    changes[day_key] = f"{attempts + 1} {of_day}"
    if attempts >= ATTEMPTS_A_DAY:
        return False
    amount *= 2 if experiment and weekday == 0 else 1
    prime = experiment and is_prime(int(number))
    if prime and (amount > PRIME_CENTS or get(prime_key) is not None):
        return False
    of_day, of_week = of_day + amount, int(get(week_key) or 0) + amount
    if of_day > DAY_CENTS or of_week > WEEK_CENTS:
        return False
    changes[day_key], changes[week_key] = f"{attempts + 1} {of_day}", str(of_week)
    if prime:
        changes[prime_key] = ""
    return True


def decide(job, experiment):
    fields = job.get("payload")
    if not isinstance(fields, dict):
        fields = {}
    number, customer = digits(fields.get("id")), digits(fields.get("customer_id"))
    amount, day = cents(fields.get("load_amount")), utc_day(fields.get("time"))
    changes, accepted = {}, False
    if number and customer and amount is not None and day is not None:
        accepted = accepts(job["state"], changes, (number, customer, amount, day), experiment)
    return {"id": job["id"], "ok": {"id": number, "customer_id": customer, "accepted": accepted}, "set": changes}


def main():
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    experiment = os.environ.get("COFFERDAM_HANDLER") == "fund_load_exp"
    for line in sys.stdin.buffer:
        try:
            job = json.loads(line)
        except RecursionError:
            # Nested deeper than Python reads, so that there is no load in it. The line begins with {"id":"…".
            job = {"id": line[7:39].decode()}
        answer = decide(job, experiment)
        sys.stdout.write(json.dumps(answer, separators=(",", ":")) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
