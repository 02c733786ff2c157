"""How schemathesis reads and writes NDJSON, and what it may say of payloads."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_context, value):
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"{}"


@schemathesis.deserializer("application/x-ndjson")
def lines(_context, response):
    return response.content.decode("utf-8", "replace")


@schemathesis.deserializer("application/json")
def document(_context, response):
    """A result is what its handler has made of what was sent, under the type that was sent: bytes are bytes."""
    if response.request.method == "POST" or response.request.path_url.endswith(("/result", "/payload")):
        return None if response.status_code < 300 and not is_json(response.content) else response.json()
    return response.json()


def is_json(content):
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
