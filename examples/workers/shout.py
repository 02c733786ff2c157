#!/usr/bin/env python3
"""A worker in Python: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them."""
import json
import sys

for line in sys.stdin:
    job = json.loads(line)
    answer = {"id": job["id"]}
    text = job["payload"].get("text") if isinstance(job.get("payload"), dict) else None
    if isinstance(text, str):
        seen = int(job["state"].get("seen", "0")) + 1
        answer.update(ok={"seen": seen, "text": text.upper()}, set={"seen": str(seen)})
    else:
        answer["error"] = "text is missing"
    print(json.dumps(answer), flush=True)
