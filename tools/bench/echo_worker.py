"""A worker that gives each payload back; see docs/workers.md."""

import json
import sys

for line in sys.stdin:
    job = json.loads(line)
    sys.stdout.write(json.dumps({"id": job["id"], "ok": job["payload"]}) + "\n")
    sys.stdout.flush()
