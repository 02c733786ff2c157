// Cofferdam from JavaScript: handlers as functions, and a client. One file, Node.js 18 or later, no packages.
//
// A worker program:
//
//     import { Retry, work } from "./cofferdam_worker.mjs";
//
//     work({
//       resize(job) {
//         if (job.delivery === 1) throw new Retry("not yet", 2);
//         return { width: job.payload.width * 2 };
//       },
//     });
//
// with {"handlers": {"resize": {"command": ["node", "resize.mjs"], "mode": "worker"}}} in the configuration. What it prints
// goes to the log with the job's id.
//
// A caller:
//
//     import { Client } from "./cofferdam_worker.mjs";
//
//     console.log(await new Client("http://127.0.0.1:8080").call("resize", { width: 2 }));
import { randomUUID } from "node:crypto";
import { writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** It cannot be done: the job fails at once. */
export class Fail extends Error {}

/** Try again later: after so many seconds, or after the service's own backoff. */
export class Retry extends Error {
  constructor(why, after) {
    super(why);
    this.after = after;
  }
}

/** A lane's state, or a trace's context: texts by name. What is changed takes effect when the job succeeds. */
class Changes extends Map {
  constructor(entries) {
    super(Object.entries(entries));
    this.before = new Map(this);
  }

  changed() {
    return Object.fromEntries([...this].filter(([key, value]) => this.before.get(key) !== value));
  }

  removed() {
    return [...this.before.keys()].filter((key) => !this.has(key));
  }
}

/**
 * What a handler is called with: id, delivery (1 is the first), fence (grows with every delivery of the deployment), handler, key
 * (the ordering key or null), trace (a W3C traceparent), tracestate (what came with it, or null), deadline (a Date), mediaType, payload (a JSON value, or a Buffer),
 * state (a Map of texts; undefined unless the handler is ordered), context (a Map of texts, shared by the jobs of a trace).
 */
export class Job {
  #submits = [];

  constructor(question) {
    const { id, delivery, fence, handler, key, trace, tracestate } = question;
    Object.assign(this, { id, delivery, fence, handler, key, trace, tracestate });
    this.deadline = new Date(question.deadline_ms);
    this.mediaType = question.media_type;
    this.payload = "payload" in question ? question.payload : Buffer.from(question.payload_base64, "base64");
    this.state = question.state && new Changes(question.state);
    this.context = new Changes(question.context);
  }

  /** Submits a job of the same trace when this one succeeds; the delay is in seconds, at most 7 days. */
  submit(handler, payload, { key = null, delay = 0 } = {}) {
    this.#submits.push({ handler, payload, key, delay_ms: Math.round(delay * 1000) });
  }

  /** Says how far it is, as a JSON value of at most 1 KiB: the job's record has the last of that while it runs. */
  progress(value) {
    say(JSON.stringify({ id: this.id, progress: value }));
  }

  answer(result) {
    const ok = result instanceof Uint8Array
      ? { ok_base64: Buffer.from(result).toString("base64"), media_type: "application/octet-stream" }
      : { ok: result ?? null };
    const state = this.state ? { set: this.state.changed(), remove: this.state.removed() } : {};
    return { id: this.id, ...ok, ...state, context_set: this.context.changed(), submit: this.#submits };
  }
}

async function answerOf(job, handlers) {
  const names = Object.keys(handlers);
  const handler = handlers[job.handler] ?? (names.length === 1 ? handlers[names[0]] : undefined);
  if (!handler) return { id: job.id, error: `this worker has no handler ${job.handler}` };
  try {
    return job.answer(await handler(job));
  } catch (error) {
    if (error instanceof Retry) {
      const after = error.after === undefined ? {} : { retry_after_ms: Math.max(1, Math.round(error.after * 1000)) };
      return { id: job.id, error: error.message, retry: true, ...after };
    }
    if (!(error instanceof Fail)) process.stderr.write(`${error?.stack ?? error}\n`);
    return { id: job.id, error: String(error?.message ?? error) };
  }
}

/** Does jobs until there are no more; handlers by name. */
export async function work(handlers) {
  // Whatever prints to standard output must not stand between the lines.
  process.stdout.write = process.stderr.write.bind(process.stderr);
  for await (const line of lines(process.stdin)) {
    let text, what = "its line cannot be read";
    try {
      const job = new Job(JSON.parse(line));
      what = "its result is no JSON";
      text = JSON.stringify(await answerOf(job, handlers));
    } catch (error) {
      // The line begins with {"id":"…". A job that cannot be read or written fails by that id: with an end of this process it would
      // come again, and end the next one.
      text = JSON.stringify({ id: line.slice(7, 39), error: `${what}: ${error.message}` });
    }
    say(text);
  }
}

// From Node.js 24 on, readline takes U+2028 for the end of a line too, which may stand within a JSON text.
async function* lines(stream) {
  let parts = [];
  for await (const chunk of stream.setEncoding("utf8")) {
    const [first, ...others] = chunk.split("\n");
    parts.push(first);
    for (const other of others) {
      yield parts.join("");
      parts = [other];
    }
  }
}

function say(text) {
  const bytes = Buffer.from(text + "\n");
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(1, bytes, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

/** The service's answer is a problem document: status, code, detail, job (its id, if there is one). */
export class Failed extends Error {
  constructor(status, problem, job) {
    super(`${problem.code ?? status}: ${problem.detail ?? ""}`);
    Object.assign(this, { status, code: problem.code, detail: problem.detail, job, problem });
  }
}

/** A service's URL, to which a path is added. Its text is not repeated in errors: a password may stand in it. */
function baseOf(url) {
  let parts = {};
  try {
    parts = new URL(url);
  } catch {
    // So that it has no protocol.
  }
  if (!["http:", "https:"].includes(parts.protocol)) throw new TypeError("the URL of a service is http://HOST:PORT or https://HOST");
  if (parts.username || parts.password) throw new TypeError("the URL of a service names no user: give a token");
  if (parts.search || parts.hash) throw new TypeError("the URL of a service has no query and no fragment");
  return parts.origin + parts.pathname.replace(/\/$/, "");
}

// How long it waits before it asks again where the answer, or its absence, does not say.
const PAUSE_MS = 500;
// A connection that ended before the whole answer was there, as `fetch` tells it.
const LOST = ["ECONNREFUSED", "ECONNRESET", "EPIPE", "UND_ERR_SOCKET"];

/**
 * A caller of `http://HOST:PORT` or `https://HOST`. `patience` is for how many seconds it asks again where the answer is "later" (429,
 * 503, a proxy's 502), or the connection is lost or refused, as while the service is upgraded. It does so only where that cannot run
 * a job twice: questions, submissions (they have an idempotency key), and all that was not accepted.
 */
export class Client {
  constructor(url = "http://127.0.0.1:8080", { token, patience = 30 } = {}) {
    Object.assign(this, { url: baseOf(url), token, patience });
  }

  async #request(method, path, body, headers = {}) {
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    for (let until; ;) {
      const { answer, bytes, failure, isLater, isUnaccepted, wait = PAUSE_MS } = await this.#exchange(method, path, body, headers);
      if (!failure) return { answer, bytes };
      // To ask for something changes nothing, and with an idempotency key a job never runs twice.
      const isSafe = method === "GET" || "Idempotency-Key" in headers || isUnaccepted;
      // From the first such answer: the request itself may have waited long before it.
      until ??= Date.now() + this.patience * 1000;
      if (!isLater || !isSafe || Date.now() + wait >= until) throw failure;
      await sleep(wait);
    }
  }

  async #exchange(method, path, body, headers) {
    let answer, bytes;
    try {
      // A redirection is no answer of the service, and what it leads to is not to have the token.
      answer = await fetch(this.url + path, { method, body, headers, redirect: "manual" });
      bytes = Buffer.from(await answer.arrayBuffer());
    } catch (failure) {
      const code = failure.cause?.code;
      return { failure, isLater: LOST.includes(code), isUnaccepted: code === "ECONNREFUSED" };
    }
    if (answer.ok) return { answer, bytes };
    let problem = { detail: bytes.toString() };
    try {
      problem = JSON.parse(bytes) ?? problem;
    } catch {
      // A proxy's own answer.
    }
    const job = answer.headers.get("cofferdam-job-id");
    const wait = Number(answer.headers.get("retry-after")) * 1000 || undefined;
    return {
      failure: new Failed(answer.status, problem, job), isLater: [429, 502, 503].includes(answer.status), wait,
      // The service says when to come again; what does not may be another's word about a job that was accepted.
      isUnaccepted: job === null && wait !== undefined,
    };
  }

  #post(handler, payload, { key, idempotencyKey, delay }, headers = {}) {
    const isBytes = payload instanceof Uint8Array;
    headers["Content-Type"] = isBytes ? "application/octet-stream" : "application/json";
    headers["Idempotency-Key"] = idempotencyKey ?? randomUUID();
    // fetch takes headers as bytes, one a character; the service reads UTF-8.
    if (key !== undefined) headers["Ordering-Key"] = Buffer.from(key).toString("latin1");
    const query = delay ? `?delay_ms=${Math.round(delay * 1000)}` : "";
    return this.#request("POST", `/v1/jobs/${handler}${query}`, isBytes ? payload : JSON.stringify(payload ?? null), headers);
  }

  /** Submits a job and waits for its result: a JSON value, or a Buffer. */
  async call(handler, payload, options = {}) {
    const { answer, bytes } = await this.#post(handler, payload, options);
    return answer.headers.get("content-type")?.includes("json") ? JSON.parse(bytes) : bytes;
  }

  /** Submits a job; its id. */
  async submit(handler, payload, options = {}) {
    return JSON.parse((await this.#post(handler, payload, options, { Prefer: "respond-async" })).bytes).id;
  }

  /** A job's record; with `wait`, once it has ended or so many seconds are over. */
  async record(job, wait = 0) {
    return JSON.parse((await this.#request("GET", `/v1/jobs/${job}${wait ? `?wait=${wait}` : ""}`)).bytes);
  }

  /** The record of a job that has ended. */
  async wait(job) {
    for (;;) {
      const record = await this.record(job, 10);
      if (!["queued", "running"].includes(record.status)) return record;
    }
  }

  /** A job that did not succeed gets a new life; its record. */
  async retry(job) {
    return JSON.parse((await this.#request("POST", `/v1/jobs/${job}/retry`)).bytes);
  }

  /** Cancels a job; its record. */
  async cancel(job) {
    return JSON.parse((await this.#request("DELETE", `/v1/jobs/${job}`)).bytes);
  }

  /** The results of many jobs, in order; one that failed is its problem document. */
  async batch(handler, payloads) {
    const lines = payloads.map((payload) => JSON.stringify(payload) + "\n").join("");
    const { bytes } = await this.#request("POST", `/v1/batch/${handler}`, lines);
    return bytes.toString().trimEnd().split("\n").map((line) => JSON.parse(line));
  }
}
