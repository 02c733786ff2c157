"""The RQ peer: what its workers run, by name."""


def echo(payload):
    return payload
