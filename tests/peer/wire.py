"""The bytes of docs/protocol.md: keys, handshake, bodies, frames. Pure: time and nonces are arguments."""

import hashlib
import hmac
import json
import re
import struct

# ---- keys --------------------------------------------------------------------------------------------------------

MAGIC, VERSION, ROLE_E, ROLE_B = b"CFD2", 2, 1, 2
M1_SIZE, M2_SIZE, M3_SIZE = 80, 104, 40
MAC_SIZE, OVERHEAD = 32, 60
AHEAD_MS, HELLO_MS, HANDSHAKE_MS = 1_000, 5_000, 2_000


class Refused(Exception):
    """The other end's bytes are not what they must be; the connection is over. Its text is the reason's name."""


def sha256(data):
    return hashlib.sha256(data).digest()


def mac_of(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def extract(salt, ikm):
    return mac_of(salt, ikm)


def expand(prk, info, size):
    okm, block = b"", b""
    while len(okm) < size:
        block = mac_of(prk, block + info + bytes([len(okm) // 32 + 1]))
        okm += block
    return okm[:size]


def group_secret(root, group):
    return expand(extract(b"cofferdam/1 group", root), group.encode(), 32)


class Keys:
    """What both ends of one group know before they meet."""

    def __init__(self, secret):
        self.secret = secret
        handshake = extract(b"cofferdam/1 handshake", secret)
        self.k_e = expand(handshake, b"executor->broker", 32)
        self.k_b = expand(handshake, b"broker->executor", 32)

    def session(self, m1, m2):
        return Session(extract(sha256(m1 + m2), self.secret))


class Session:
    """What one connection signs with."""

    def __init__(self, prk):
        self.prk = prk
        self.e2b = expand(prk, b"cofferdam/1 data executor->broker", 32)
        self.b2e = expand(prk, b"cofferdam/1 data broker->executor", 32)
        self.conn_id = expand(prk, b"cofferdam/1 conn-id", 8)


# ---- handshake ---------------------------------------------------------------------------------------------------


def make_m1(keys, group, now, nonce):
    head = MAGIC + struct.pack(">BBHQ", VERSION, ROLE_E, group, now) + nonce
    return head + mac_of(keys.k_e, b"M1" + head)


def make_m2(keys, m1, now, nonce, boot_id, max_frame, max_leases):
    head = MAGIC + struct.pack(">BBHQ", VERSION, ROLE_B, 0, now) + nonce + boot_id
    head += struct.pack(">II", max_frame, max_leases)
    return head + mac_of(keys.k_b, b"M2" + sha256(m1) + head)


def make_m3(keys, m1, m2):
    head = MAGIC + struct.pack(">BBH", VERSION, ROLE_E, 0)
    return head + mac_of(keys.k_e, b"M3" + sha256(m1 + m2) + head)


def check_head(message, role):
    if message[:4] != MAGIC:
        raise Refused("malformed")
    if message[4] != VERSION:
        raise Refused("bad_version")
    if message[5] != role:
        raise Refused("malformed")


def check_mac(key, prefix, message):
    if not hmac.compare_digest(mac_of(key, prefix + message[:-MAC_SIZE]), message[-MAC_SIZE:]):
        raise Refused("bad_signature")


def check_time(made, now, oldest_ms):
    if now - made > oldest_ms or made - now > AHEAD_MS:
        raise Refused("expired_timestamp")


def check_zero(message):
    if message[6:8] != bytes(2):
        raise Refused("malformed")


def check_m1(groups, m1, now, nonces):
    """B's check, which the vectors name too. `groups` are the keys by index."""
    check_head(m1, ROLE_E)
    group = int.from_bytes(m1[6:8], "big")
    if group >= len(groups):
        raise Refused("bad_signature")
    check_mac(groups[group].k_e, b"M1", m1)
    check_time(int.from_bytes(m1[8:16], "big"), now, HELLO_MS)
    if m1[16:48] in nonces:
        raise Refused("replayed_nonce")
    nonces.add(m1[16:48])


def check_m2(keys, m1, m2, now):
    check_head(m2, ROLE_B)
    check_zero(m2)
    check_mac(keys.k_b, b"M2" + sha256(m1), m2)
    check_time(int.from_bytes(m2[8:16], "big"), now, HELLO_MS)
    boot_id, max_frame, max_leases = struct.unpack(">16sII", m2[48:72])
    if max_frame < 1_088 or max_leases < 1:
        raise Refused("handshake_failed")
    return boot_id, max_frame, max_leases


def check_m3(keys, m1, m2, m3):
    check_head(m3, ROLE_E)
    check_zero(m3)
    check_mac(keys.k_e, b"M3" + sha256(m1 + m2), m3)


# ---- bodies: each layout is written once and serves both directions ------------------------------------------------


class Cursor:
    """Takes bytes from the front, and never more than there are."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        if size > len(self.data) - self.at:
            raise Refused("malformed")
        self.at += size
        return self.data[self.at - size : self.at]

    def finish(self):
        if self.at != len(self.data):
            raise Refused("malformed")


class Uint:
    def __init__(self, size, most=None):
        self.size, self.most = size, (1 << 8 * size) - 1 if most is None else most

    def read(self, cursor):
        value = int.from_bytes(cursor.take(self.size), "big")
        if value > self.most:
            raise Refused("malformed")
        return value

    def write(self, value):
        return int(value).to_bytes(self.size, "big")


class Fixed:
    """So many bytes, shown as hex."""

    def __init__(self, size):
        self.size = size

    def read(self, cursor):
        return cursor.take(self.size).hex()

    def write(self, value):
        assert len(value) == 2 * self.size
        return bytes.fromhex(value)


class Bytes:
    def read(self, cursor):
        return cursor.take(U32.read(cursor))

    def write(self, value):
        return U32.write(len(value)) + value


class Text:
    def __init__(self, most=0xFFFF, one_of=None):
        self.most, self.one_of = most, one_of

    def read(self, cursor):
        raw = cursor.take(U16.read(cursor))
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            raise Refused("malformed") from None
        if len(raw) > self.most or (self.one_of and value not in self.one_of):
            raise Refused("malformed")
        return value

    def write(self, value):
        raw = value.encode()
        return U16.write(len(raw)) + raw


class Media(Text):
    """A media type; one that is none is read as plain bytes."""

    GRAMMAR = re.compile(r"{0}/{0}[ \t]*(;[\x20-\x7e\t]*)?".format(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+"))
    PLAIN, MOST = "application/octet-stream", 256

    def read(self, cursor):
        value = super().read(cursor)
        return value if len(value) <= self.MOST and self.GRAMMAR.fullmatch(value) else self.PLAIN


class List:
    def __init__(self, item, least=0, most=0xFFFF):
        self.item, self.least, self.most = item, least, most

    def read(self, cursor):
        count = U16.read(cursor)
        if not self.least <= count <= self.most:
            raise Refused("malformed")
        return [self.item.read(cursor) for _ in range(count)]

    def write(self, items):
        return U16.write(len(items)) + b"".join(self.item.write(item) for item in items)


class Record:
    """Named fields in order; `valid` says what the fields together must be."""

    def __init__(self, fields, valid=lambda record: True):
        self.fields, self.valid = fields, valid

    def read(self, cursor):
        record = {name: layout.read(cursor) for name, layout in self.fields.items()}
        if not self.valid(record):
            raise Refused("malformed")
        return record

    def write(self, record):
        return b"".join(layout.write(record[name]) for name, layout in self.fields.items())


class Choice:
    """A number and then the fields of what it stands for."""

    def __init__(self, *arms):
        self.names, self.layouts = [name for name, _ in arms], [Record(fields) for _, fields in arms]

    def read(self, cursor):
        tag = U8.read(cursor)
        if tag >= len(self.names):
            raise Refused("malformed")
        return {"is": self.names[tag], **self.layouts[tag].read(cursor)}

    def write(self, value):
        tag = self.names.index(value["is"])
        return U8.write(tag) + self.layouts[tag].write(value)


U8, U16, U32, U64, FLAG = Uint(1), Uint(2), Uint(4), Uint(8), Uint(1, most=1)
ID, NAME, DETAIL = Fixed(16), Text(most=1_024), Text(most=6_144)
PAYLOAD = Record({"media": Media(), "data": Bytes()})
KEY = Record({"keyed": FLAG, "key": Text()}, lambda key: key["keyed"] or not key["key"])
ENTRY = Record({"name": NAME, "value": Bytes()})
CHANGE = Record({"name": NAME, "set": FLAG, "value": Bytes()}, lambda it: it["set"] or not it["value"])
FOLLOW_UP = Record({"handler": Text(), "key": KEY, "delay_ms": U64, "payload": PAYLOAD})
EFFECTS = Record({"state": List(CHANGE), "context": List(CHANGE), "follow_ups": List(FOLLOW_UP, most=1_000)})
CODES = ("handler_failed", "state_too_large", "result_too_large")
RESULT = Choice(
    ("succeeded", {"payload": PAYLOAD, "effects": EFFECTS}),
    ("failed", {"code": Text(one_of=CODES), "detail": DETAIL}),
    ("retry", {"detail": DETAIL, "after_ms": U64}),
    ("crashed", {"detail": DETAIL}),
    ("timed_out", {"detail": DETAIL}),
)
JOB = Record({
    "id": ID, "delivery": U32, "fence": U64, "trace": ID, "span": Fixed(8), "flags": U8,
    "tracestate": Text(most=512), "submitted_us": U64, "timeout_ms": U64,
    "one_line": FLAG, "owner": Text(), "key": KEY, "payload": PAYLOAD,
})  # fmt: skip
STATE = Record(
    {"is_context": FLAG, "trace": ID, "entries": List(ENTRY)},
    lambda it: it["is_context"] or it["trace"] == "00" * 16,
)
LEASE = Record({"handler": Text(), "state": Uint(1, most=2), "version": U64, "jobs": List(JOB, least=1)})
NOTHING = Record({})
STATELESS, KNOWN, WHOLE = 0, 1, 2


def is_a_line_of_json(text):
    """True for JSON in one line, with no blank around it."""
    try:
        json.loads(text, parse_constant=int)
    except ValueError:
        return False
    return text.strip() == text and not {"\n", "\r"} & set(text)


E_TO_B = {
    0x01: ("ping", NOTHING),
    0x10: ("room", Record({"level": U32})),
    0x11: ("outcome", Record({"job": ID, "delivery": U32, "builds_on": U64, "outcome": RESULT})),
    0x12: ("release", NOTHING),
    0x14: ("part", EFFECTS),
    0x15: ("progress", Record({"job": ID, "progress": Text(most=1_024)}, lambda it: is_a_line_of_json(it["progress"]))),
}
OUTCOME = E_TO_B[0x11][1]
B_TO_E = {
    0x81: ("pong", NOTHING),
    0x90: ("state", STATE),
    0x91: ("lease", LEASE),
    0x93: ("fenced", Record({"job": ID})),
    0x94: ("cancel", Record({"job": ID})),
    0xA0: ("drain", NOTHING),
}


def counted_bytes(effects):
    """What effects count for against the bound of parts."""
    changes = sum(64 + len(it["name"].encode()) + len(it["value"]) for it in (*effects["state"], *effects["context"]))
    return changes + sum(1_024 + len(it["payload"]["data"]) for it in effects["follow_ups"])


def parts_bound(lane_state_max, max_frame):
    mib = 1 << 20
    return 2 * (lane_state_max + mib) + 65 * mib + max_frame


# ---- frames ------------------------------------------------------------------------------------------------------


class Sealer:
    """One direction's writing end."""

    def __init__(self, key, kinds):
        self.key, self.sequence = key, 0
        self.numbers = {name: (number, layout) for number, (name, layout) in kinds.items()}

    def seal(self, name, lease, body, now):
        number, layout = self.numbers[name]
        return self.seal_raw(number, lease, layout.write(body), now)

    def seal_raw(self, number, lease, body, now):
        frame = struct.pack(">IBBHQQQ", OVERHEAD + len(body), number, 0, 0, self.sequence, now, lease) + body
        self.sequence += 1
        return frame + mac_of(self.key, frame)


class Opener:
    """One direction's reading end: `next` gives a frame, or None while more bytes are needed."""

    def __init__(self, key, kinds, max_frame, ttl_ms):
        self.key, self.kinds, self.max_frame, self.ttl_ms = key, kinds, max_frame, ttl_ms
        self.sequence, self.buffer = 0, bytearray()

    def next(self, now):
        if len(self.buffer) < 4:
            return None
        length = int.from_bytes(self.buffer[:4], "big")
        if length < OVERHEAD:
            raise Refused("malformed")
        if length > self.max_frame:
            raise Refused("oversized")
        if len(self.buffer) < 4 + length:
            return None
        frame = bytes(self.buffer[: 4 + length])
        del self.buffer[: 4 + length]
        check_mac(self.key, b"", frame)
        _, number, flags, reserved, sequence, made, lease = struct.unpack(">IBBHQQQ", frame[:32])
        if sequence != self.sequence:
            raise Refused("replayed_nonce")
        self.sequence += 1
        check_time(made, now, self.ttl_ms)
        if flags or reserved:
            raise Refused("malformed")
        if number not in self.kinds:
            raise Refused("unknown_kind")
        name, layout = self.kinds[number]
        cursor = Cursor(frame[32:-MAC_SIZE])
        body = layout.read(cursor)
        cursor.finish()
        return name, lease, body
