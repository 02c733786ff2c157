#!/usr/bin/env node
// A worker in JavaScript: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them.
import { createInterface } from "node:readline";

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  const text = job.payload?.text;
  let answer = { id: job.id, error: "text is missing" };
  if (typeof text === "string") {
    const seen = Number(job.state.seen ?? 0) + 1;
    answer = { id: job.id, ok: { seen, text: text.toUpperCase() }, set: { seen: String(seen) } };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
