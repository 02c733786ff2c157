// The BullMQ peer: `bullmq.mjs worker`, or the callers with the options of `closed_loop.py`, one JSON object out.
//
// `BENCH_REDIS_SOCKET` is the path of Redis's socket, `BENCH_PEERS` the folder that holds `node_modules`.

import { setMaxListeners } from "node:events";
import { createRequire } from "node:module";
import { join } from "node:path";
import { parseArgs } from "node:util";

const { Queue, QueueEvents, Worker } = createRequire(join(process.env.BENCH_PEERS, "package.json"))("bullmq");

const NAME = "bench";
const WORKER_CONCURRENCY = 64;
const BULK = 100;
// A JSON object of 120 bytes, as `bench-load` sends it.
const PAYLOAD = { pad: "x".repeat(110) };
// After this a caller gives a job up; generous, because the first one waits for the worker to start.
const TIMEOUT_MS = 20_000;
const connection = { path: process.env.BENCH_REDIS_SOCKET };

if (process.argv[2] === "worker") {
  serve();
} else {
  console.log(JSON.stringify(await load()));
}

function serve() {
  const options = { connection: { ...connection, maxRetriesPerRequest: null }, concurrency: WORKER_CONCURRENCY };
  const worker = new Worker(NAME, async (job) => job.data, options);
  process.on("SIGTERM", () => worker.close().then(() => process.exit(0)));
}

async function load() {
  const text = { type: "string" };
  const { values: options } = parseArgs({
    options: { mode: text, callers: text, seconds: text, warmup: text, jobs: text },
  });
  const queue = new Queue(NAME, { connection });
  const events = new QueueEvents(NAME, { connection });
  // Each waiting caller is a listener; Node's warning about the eleventh would cost more than the job.
  setMaxListeners(0, queue, events);
  const bulk = Array.from({ length: BULK }, () => ({ name: "echo", data: PAYLOAD }));
  const calls = {
    async await() {
      const job = await queue.add("echo", PAYLOAD);
      const answer = await job.waitUntilFinished(events, TIMEOUT_MS);
      if (JSON.stringify(answer) !== JSON.stringify(PAYLOAD)) {
        throw new Error(`not the payload: ${JSON.stringify(answer)}`);
      }
      return 1;
    },
    submit: async () => (await queue.add("echo", PAYLOAD), 1),
    bulk: async () => (await queue.addBulk(bulk), BULK),
  };
  try {
    await events.waitUntilReady();
    if (options.mode === "enqueue") {
      return await enqueue(queue, Number(options.jobs));
    }
    const call = calls[options.mode];
    await call();
    return await measure(call, Number(options.callers ?? 1), Number(options.seconds), Number(options.warmup ?? 0));
  } finally {
    await Promise.all([events.close(), queue.close()]);
  }
}

async function enqueue(queue, jobs) {
  for (let left = jobs; left > 0; left -= BULK) {
    const length = Math.min(BULK, left);
    await queue.addBulk(Array.from({ length }, () => ({ name: "echo", data: PAYLOAD })));
  }
  return { jobs };
}

// Counts what ended in the measured time; the job under way at its end is awaited, but does not count.
async function measure(call, callers, seconds, warmup) {
  const begin = performance.now() + warmup * 1000;
  const end = begin + seconds * 1000;
  const times = [];
  const errors = [];
  let jobs = 0;
  async function caller() {
    let asked = performance.now();
    while (asked < end) {
      let count;
      try {
        count = await call();
      } catch (error) {
        errors.push(String(error));
        return;
      }
      const answered = performance.now();
      if (begin <= answered && answered < end) {
        times.push(answered - asked);
        jobs += count;
      }
      asked = answered;
    }
  }
  await Promise.all(Array.from({ length: callers }, caller));
  times.sort((one, other) => one - other);
  const percentile = (percent) =>
    times.length ? Math.round(times[Math.floor((times.length * percent) / 100)] * 1000) : null;
  return { jobs, jobs_per_second: jobs / seconds, p50_us: percentile(50), p99_us: percentile(99), errors };
}
