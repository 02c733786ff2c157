#!/usr/bin/env node
// A worker in JavaScript: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them.

// Not readline: from Node.js 24 on, it takes U+2028 for the end of a line too, which may stand within a JSON text.
async function* lines(stream) {
  let rest = "";
  for await (const chunk of stream.setEncoding("utf8")) {
    const whole = (rest + chunk).split("\n");
    rest = whole.pop();
    yield* whole;
  }
}

for await (const line of lines(process.stdin)) {
  const job = JSON.parse(line);
  const text = job.payload?.text;
  let answer = { id: job.id, error: "text is missing" };
  if (typeof text === "string") {
    const seen = Number(job.state.seen ?? 0) + 1;
    answer = { id: job.id, ok: { seen, text: text.toUpperCase() }, set: { seen: String(seen) } };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
