"""Reads OTLP JSON lines from standard input as a collector does, into the messages of opentelemetry-proto.

OTLP's JSON is protobuf's but for ids, which are hexadecimal. An unknown field, another type or a wrong enum is an error. Prints the
name, kind, length of its ids and status of each span.
"""

import base64
import json
import re
import sys

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def bytes_of(text, size):
    assert re.fullmatch("[0-9a-f]{%d}" % (2 * size), text), text
    return base64.b64encode(bytes.fromhex(text)).decode()


for line in sys.stdin:
    request = json.loads(line)
    spans = [s for r in request["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]]
    for span in spans:
        span["traceId"], span["spanId"] = bytes_of(span["traceId"], 16), bytes_of(span["spanId"], 8)
        if "parentSpanId" in span:
            span["parentSpanId"] = bytes_of(span["parentSpanId"], 8)
    message = ParseDict(request, ExportTraceServiceRequest())
    for resource in message.resource_spans:
        assert any(a.key == "service.name" and a.value.string_value for a in resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
                print(span.name, span.kind, len(span.trace_id), len(span.span_id), span.status.code)
