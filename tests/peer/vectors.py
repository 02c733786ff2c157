"""Checks this implementation against the test vectors of docs/protocol.md, section 8."""

import re

from wire import (
    B_TO_E, E_TO_B, Keys, Opener, Refused, Sealer, check_m1, check_m2, check_m3, group_secret, make_m1, make_m2,
    make_m3,
)  # fmt: skip

M1_AT, M2_AT, FRAME_AT, FRAME_TTL_MS = 1_000_000, 1_000_001, 1_000_002, 30_000
VECTOR_MAX_FRAME, VECTOR_MAX_LEASES = 1_114_112, 65_536


class Vectors:
    """The two blocks of section 8."""

    def __init__(self, document):
        section = document[document.index("## 8. Test vectors") :]
        values, refusals = re.findall(r"^```text\n(.*?)^```", section, re.M | re.S)[:2]
        joined = re.sub(r"\n +", "", values)
        self.values = {name: bytes.fromhex(v) for name, v in (line.split(" = ") for line in joined.splitlines())}
        self.refusals = [line.split() for line in refusals.splitlines()]
        self.keys = Keys(self.values["S"])
        self.session = self.keys.session(self.values["M1"], self.values["M2"])

    def openers(self):
        return (
            Opener(self.session.e2b, E_TO_B, VECTOR_MAX_FRAME, FRAME_TTL_MS),
            Opener(self.session.b2e, B_TO_E, VECTOR_MAX_FRAME, FRAME_TTL_MS),
        )

    def made(self):
        """What this implementation makes of the same inputs."""
        v, keys, session = self.values, self.keys, self.session
        yield "S", group_secret(v["R"], "execution")
        yield from (("K_e", keys.k_e), ("K_b", keys.k_b), ("PRK", session.prk))
        yield from (("k_e2b", session.e2b), ("k_b2e", session.b2e), ("conn_id", session.conn_id))
        yield "M1", make_m1(keys, 0, M1_AT, v["nonce_e"])
        for name, max_frame, max_leases in (
            ("M2", VECTOR_MAX_FRAME, VECTOR_MAX_LEASES),
            ("M2.x.max_frame", 1_087, VECTOR_MAX_LEASES),
            ("M2.x.max_leases", VECTOR_MAX_FRAME, 0),
        ):
            yield name, make_m2(keys, v["M1"], M2_AT, v["nonce_b"], v["boot_id"], max_frame, max_leases)
        yield "M3", make_m3(keys, v["M1"], v["M2"])
        yield from self.remade_frames()

    def remade_frames(self):
        """Every good frame, opened and sealed again from what was read."""
        from_e, from_b = self.openers()
        sealer_e, sealer_b = Sealer(self.session.e2b, E_TO_B), Sealer(self.session.b2e, B_TO_E)
        for name, frame in self.values.items():
            if not name.startswith("frame.") or name.startswith("frame.x."):
                continue
            opener, sealer = (from_b, sealer_b) if frame[4] & 0x80 else (from_e, sealer_e)
            opener.buffer += frame
            kind, lease, body = opener.next(FRAME_AT)
            assert name.split(".")[1] == kind, f"{name} was read as {kind}"
            yield name, sealer.seal(kind, lease, body, FRAME_AT)

    def refusal(self, what, now, offset, bit):
        """The reason that the receiver gives for these bytes, or None."""
        name, *again = what.split("+")
        data = bytearray(self.values[name])
        if offset != "-":
            data[int(offset)] ^= int(bit, 16)
        data, nonces, (opener, _) = bytes(data), set(), self.openers()
        try:
            for _ in range(1 + len(again)):
                if name.startswith("M1"):
                    check_m1([self.keys], data, now, nonces)
                elif name.startswith("M2"):
                    check_m2(self.keys, self.values["M1"], data, now)
                elif name.startswith("M3"):
                    check_m3(self.keys, self.values["M1"], self.values["M2"], data)
                else:
                    opener.buffer += data
                    opener.next(now)
        except Refused as refused:
            return str(refused)
        return None


def check_vectors(path):
    with open(path, encoding="utf-8") as file:
        vectors = Vectors(file.read())
    v = vectors.values
    made = dict(vectors.made())
    wrong = [f"{name} is made differently: {made[name].hex()}" for name in made if made[name] != v[name]]
    inputs = {"R", "nonce_e", "nonce_b", "boot_id"}
    wrong += [f"{name} was not checked" for name in v if name not in made | dict.fromkeys(inputs) and ".x." not in name]
    check_m1([vectors.keys], v["M1"], M1_AT, set())
    told = check_m2(vectors.keys, v["M1"], v["M2"], M2_AT)
    wrong += [] if told == (v["boot_id"], VECTOR_MAX_FRAME, VECTOR_MAX_LEASES) else [f"M2 tells {told}"]
    check_m3(vectors.keys, v["M1"], v["M2"], v["M3"])
    for what, now, offset, bit, reason in vectors.refusals:
        got = vectors.refusal(what, int(now), offset, bit)
        wrong += [] if got == reason else [f"{what} {offset} {bit}: {got} instead of {reason}"]
    refused = {row[0].split("+")[0] for row in vectors.refusals}
    wrong += [f"{name} is not among the refusals" for name in v if ".x." in name and name not in refused]
    print(*wrong, f"{len(made)} made, {len(vectors.refusals)} refused, {len(wrong)} wrong", sep="\n")
    return 1 if wrong else 0
