#!/usr/bin/env python3
"""A worker in Python: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them."""
import json
import sys

for line in sys.stdin:
    # The line begins with {"id":"…": a job that Python cannot read fails by that, and takes no worker along.
    answer = {"id": line[7:39]}
    try:
        job = json.loads(line)
    except (RecursionError, ValueError) as error:
        print(json.dumps({**answer, "error": str(error)}), flush=True)
        continue
    text = job["payload"].get("text") if isinstance(job.get("payload"), dict) else None
    if isinstance(text, str):
        seen = int(job["state"].get("seen", "0")) + 1
        answer.update(ok={"seen": seen, "text": text.upper()}, set={"seen": str(seen)})
    else:
        answer["error"] = "text is missing"
    print(json.dumps(answer), flush=True)
