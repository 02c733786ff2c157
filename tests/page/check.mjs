// The dashboard in a real browser, against a real server. Plain Node (18 or later), no packages: headless Chromium is
// driven by the DevTools protocol over a pipe.
//
//   node tests/page/check.mjs http://127.0.0.1:8080 [--lost]
//
// The server has the handlers `echo`, `sleep` and one with a name of 64 characters, and at most a few jobs. It is used: jobs are
// submitted, handlers are paused and resumed, a job is cancelled. With `--lost` the last line but one on standard output is `stop the server`: the caller
// does so, and the page must tell it. COFFERDAM_TOKEN is the token, with all scopes, of a server that asks for one;
// CHROMIUM the browser (otherwise `chromium`). Exit 0: all is well; 1: standard error says what is not; 2: bad usage.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const STEP_MS = 20_000;
const ALL_MS = 150_000;

const [base, mode] = process.argv.slice(2);
const token = process.env.COFFERDAM_TOKEN || "";
if (!/^http:\/\/[^/]+$/.test(base || "") || (mode !== undefined && mode !== "--lost")) {
  console.error("usage: node tests/page/check.mjs http://HOST:PORT [--lost]");
  process.exit(2);
}

// ---- The browser

/** Chromium with one page. Messages are JSON with a NUL behind each, written to its descriptor 3 and read from its 4. */
class Browser {
  constructor() {
    this.profile = mkdtempSync(join(tmpdir(), "cofferdam-page-"));
    const flags = ["--headless", "--remote-debugging-pipe", `--user-data-dir=${this.profile}`, "--no-first-run",
      "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"];
    // Chromium's own sandbox cannot be set up for root.
    if (process.getuid() === 0) flags.push("--no-sandbox");
    const stdio = ["ignore", "ignore", "ignore", "pipe", "pipe"];
    this.child = spawn(process.env.CHROMIUM || "chromium", [...flags, "about:blank"], { stdio });
    this.ended = new Promise((resolve) => this.child.once("exit", resolve).once("error", resolve));
    this.broken = new Promise((_, reject) => {
      this.child.once("error", (error) => reject(new Error(`Chromium cannot be started: ${error.message}`)));
      this.child.once("exit", (code) => reject(new Error(`Chromium ended with ${code}`)));
    });
    this.broken.catch(() => {});
    this.child.stdio[3].on("error", () => {});
    this.waiting = new Map();
    this.lastId = 0;
    this.listeners = new Map();
    this.readMessages();
  }

  readMessages() {
    let rest = "";
    this.child.stdio[4].setEncoding("utf8").on("data", (chunk) => {
      const messages = (rest + chunk).split("\0");
      rest = messages.pop();
      for (const message of messages) this.take(JSON.parse(message));
    });
  }

  take({ id, method, params, result, error }) {
    if (id === undefined) return this.listeners.get(method)?.(params);
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (error) reject(new Error(error.message));
    else resolve(result);
  }

  on(method, listener) {
    this.listeners.set(method, listener);
  }

  send(method, params = {}) {
    this.lastId += 1;
    const id = this.lastId;
    const answer = new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
    this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId: this.session })}\0`);
    return Promise.race([answer, this.broken]);
  }

  async openPage() {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    this.session = sessionId;
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await this.send(`${domain}.enable`);
  }

  /** The value of an expression in the page. */
  async value(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description || exceptionDetails.text);
    return result.value;
  }

  async close() {
    const timer = setTimeout(() => this.child.kill("SIGKILL"), 3000);
    this.session = undefined;
    await this.send("Browser.close").catch(() => {});
    await this.ended;
    clearTimeout(timer);
    rmSync(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** What must not happen on the page, whatever else is looked at. */
class Complaints {
  constructor(browser) {
    this.list = [];
    this.serverIsStopped = false;
    this.isRefused = false;
    browser.on("Runtime.exceptionThrown", ({ exceptionDetails: what }) => this.add(`exception: ${what.exception?.description || what.text}`));
    browser.on("Runtime.consoleAPICalled", ({ type, args }) => {
      if (["error", "warning", "assert"].includes(type)) this.add(`console.${type}: ${args.map((one) => one.value).join(" ")}`);
    });
    browser.on("Log.entryAdded", ({ entry }) => this.log(entry));
    browser.on("Network.requestWillBeSent", ({ request: { url } }) => {
      if (!url.startsWith(`${base}/`) && !url.startsWith("data:")) this.add(`a request to another host: ${url}`);
    });
  }

  /** The browser itself logs each answer that is an error, so the first 401, a 400 that is asked for and a stopped server are no complaint. */
  log({ source, level, text, url }) {
    if (level !== "error" && level !== "warning") return;
    if (source === "network" && (this.serverIsStopped || (token && /\b401\b/.test(text)) || (this.isRefused && /\b400\b/.test(text)))) return;
    this.add(`${source} ${level}: ${text} ${url || ""}`);
  }

  add(text) {
    this.list.push(text);
  }
}

// ---- The server, beside the page

function ask(method, path, body, headers = {}) {
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  const length = body === undefined ? {} : { "Content-Length": Buffer.byteLength(body) };
  return new Promise((resolve, reject) => {
    const sent = request(base + path, { method, headers: { ...authorization, ...length, ...headers } }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (chunk) => { text += chunk; });
      answer.on("end", () => (answer.statusCode < 300 ? resolve(JSON.parse(text))
        : reject(new Error(`${method} ${path}: ${answer.statusCode} ${text}`))));
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

async function submit(handler, payload) {
  const headers = { "Content-Type": "application/json", Prefer: "respond-async" };
  return (await ask("POST", `/v1/jobs/${handler}`, JSON.stringify(payload), headers)).id;
}

// ---- Looking and acting

const quoted = (text) => JSON.stringify(text);
const textOf = (selector) => `(document.querySelector(${quoted(selector)})?.textContent ?? "")`;
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function until(what, look) {
  const end = Date.now() + STEP_MS;
  let seen;
  while (Date.now() < end) {
    seen = await look();
    if (seen === true) return;
    await pause(50);
  }
  throw new Error(`${what}: not within ${STEP_MS / 1000} s; seen: ${quoted(seen)}`);
}

function shows(browser, selector, words) {
  return until(`${selector} shows ${words}`, async () => {
    const text = await browser.value(textOf(selector));
    return words.test(text) || text.slice(0, 2000);
  });
}

/** Presses the button whose text begins with these words. */
async function press(browser, place, words) {
  const button = `[...document.querySelectorAll(${quoted(`${place} button`)})].find((one) => one.textContent.startsWith(${quoted(words)}) && !one.disabled)`;
  await until(`a button ${words} in ${place}`, () => browser.value(`Boolean(${button})`));
  await browser.value(`{ const button = ${button}; button.focus(); button.click(); }`);
}

async function go(browser, hash, heading) {
  await browser.value(`location.hash = ${quoted(hash)}`);
  await shows(browser, "main h1", heading);
}

const dialogIs = (browser, isOpen) =>
  until(`the dialog is ${isOpen ? "open" : "closed"}`, () => browser.value(`document.querySelector("#ask").open === ${isOpen}`));

// ---- What is checked

async function loads(browser) {
  await browser.send("Page.navigate", { url: `${base}/` });
  if (token) {
    await shows(browser, "main h1", /^Token$/);
    await browser.value(`document.querySelector("#token").value = ${quoted(token)}`);
    await press(browser, "main", "Look");
  }
  await shows(browser, "#state", /^Live$/);
  await shows(browser, "main", /Handlers.*echo.*sleep/s);
  const charts = await browser.value(`document.querySelectorAll("main svg[role=img][aria-label]").length`);
  if (charts !== 4) throw new Error(`there are ${charts} charts with a text, not 4`);
}

async function figuresChange(browser) {
  const submitted = `Number([...document.querySelectorAll("dt")].find((one) => one.textContent === "submitted").nextSibling.textContent.replaceAll(",", ""))`;
  const before = await browser.value(submitted);
  for (let number = 0; number < 5; number += 1) await submit("echo", { number });
  await until("five more jobs are counted", async () => {
    const now = await browser.value(submitted);
    return now >= before + 5 || now;
  });
}

async function storyIsTold(browser) {
  const id = await submit("echo", { hello: 1 });
  await go(browser, `#/jobs/${id}`, new RegExp(id));
  await shows(browser, "main .badge", /^succeeded$/);
  await shows(browser, "main table", /Accepted.*Attempt 1.*Ended/s);
  await press(browser, "main", "Show the result");
  await shows(browser, "main pre", /"hello": 1/);
}

const isPaused = async (name) => (await ask("GET", "/v1/stats")).handlers.find((one) => one.name === name).paused;

async function isToldAndDone(browser, verb, words, paused) {
  await press(browser, "main", verb);
  await dialogIs(browser, true);
  if (await isPaused("echo") === paused) throw new Error(`${verb} was done before the dialog was answered`);
  await press(browser, "#ask", verb);
  await dialogIs(browser, false);
  await shows(browser, "#said", words);
  if (await isPaused("echo") !== paused) throw new Error(`the page says ${words}, the server does not`);
}

async function handlerIsPausedAndResumed(browser) {
  await go(browser, "#/handlers/echo", /echo/);
  await isToldAndDone(browser, "Pause", /echo is paused/, true);
  const id = await submit("echo", { waits: true });
  await shows(browser, "#lanes", /its handler is paused/);
  await go(browser, `#/jobs/${id}`, new RegExp(id));
  await shows(browser, "main", /its handler is paused/);
  await go(browser, "#/handlers/echo", /echo/);
  await isToldAndDone(browser, "Resume", /echo is open/, false);
  await go(browser, `#/jobs/${id}`, new RegExp(id));
  await shows(browser, "main .badge", /^succeeded$/);
}

async function retryOfAllIsCountedFirst(browser) {
  const id = await submit("sleep", { ms: 60_000 });
  await go(browser, `#/jobs/${id}`, new RegExp(id));
  await press(browser, "main", "Cancel");
  await press(browser, "#ask", "Cancel it");
  await shows(browser, "#said", /is cancelled/);
  await go(browser, "#/jobs?status=cancelled&handler=sleep", /^Jobs$/);
  await shows(browser, "main table", new RegExp(id.slice(0, 12)));
  await press(browser, "main", "Retry all that match");
  await shows(browser, "#ask-text", /^\d+ jobs? match(es)?: status cancelled, handler sleep/);
  await press(browser, "#ask", "Go back");
  await dialogIs(browser, false);
  const { status } = await ask("GET", `/v1/jobs/${id}`);
  if (status !== "cancelled") throw new Error(`the dry run changed the job: it is ${status}`);
}

/** The refused filter is told once, and nothing is said to be awaited. */
async function refusedFilterIsTold(browser, complaints) {
  complaints.isRefused = true;
  await go(browser, "#/jobs?status=bogus", /^Jobs$/);
  await shows(browser, "main .problem", /^400 /);
  const text = await browser.value(textOf("main"));
  if (/Asking the server/.test(text)) throw new Error(`it asks and is refused: ${text}`);
  complaints.isRefused = false;
}

/** Counters that fell between two polls, as those of a new web process do, give no sample. */
async function restartIsNoSample(browser) {
  const poll = (submitted, succeeded) => `{ totals: { submitted: ${submitted} }, handlers: [{ finished: { succeeded: ${succeeded} } }] }`;
  const added = (before, after) => browser.value(
    `{ const had = state.samples; state.samples = []; takeDifference(${before}, ${after}); const { length } = state.samples; state.samples = had; length }`);
  const seen = [await added(poll(5, 4), poll(7, 5)), await added(poll(5, 4), poll(1, 1)), await added(poll(5, 4), poll(6, 1))];
  if (seen.join() !== "1,0,0") throw new Error(`samples of an ordinary poll, and of two after a restart: ${seen}`);
}

/** No page is wider than a telephone's screen, with the longest name that a handler may have. */
async function narrowScreensAreEnough(browser) {
  const name = (await ask("GET", "/v1/stats")).handlers.map((one) => one.name).find((one) => one.length === 64);
  if (!name) throw new Error("the server has no handler with a name of 64 characters");
  const id = await submit(name, { at: 1 });
  for (const width of [390, 320]) {
    await browser.send("Emulation.setDeviceMetricsOverride", { width, height: 800, deviceScaleFactor: 1, mobile: false });
    const fits = async (what, element) => {
      const [wide, room] = await browser.value(`{ const { scrollWidth, clientWidth } = ${element}; [scrollWidth, clientWidth] }`);
      if (wide > room) throw new Error(`${what} is ${wide} px wide on a screen of ${width}`);
    };
    const pages = { "#/": /^Overview$/, "#/jobs": /^Jobs$/, [`#/jobs?handler=${name}`]: /^Jobs$/,
      [`#/handlers/${name}`]: new RegExp(name), [`#/jobs/${id}`]: new RegExp(id) };
    for (const [hash, heading] of Object.entries(pages)) {
      await go(browser, hash, heading);
      await fits(hash, "document.documentElement");
    }
    await go(browser, `#/handlers/${name}`, new RegExp(name));
    await press(browser, "main", "Pause");
    await dialogIs(browser, true);
    await fits("the dialog", `document.querySelector("#ask")`);
    await press(browser, "#ask", "Pause");
    await dialogIs(browser, false);
    await go(browser, "#/", /^Overview$/);
    await shows(browser, ".attention", /is paused/);
    await fits("what needs attention", "document.documentElement");
    await go(browser, `#/handlers/${name}`, new RegExp(name));
    await press(browser, "main", "Resume");
    await press(browser, "#ask", "Resume");
    await dialogIs(browser, false);
  }
  await browser.send("Emulation.clearDeviceMetricsOverride");
}

async function lostServerIsTold(browser, complaints) {
  complaints.serverIsStopped = true;
  console.log("stop the server");
  await shows(browser, "#state", /^Lost since/);
  await shows(browser, "#alerts", /The server is lost/);
}

const STEPS = [loads, figuresChange, storyIsTold, handlerIsPausedAndResumed, retryOfAllIsCountedFirst,
  refusedFilterIsTold, restartIsNoSample, narrowScreensAreEnough];

async function check(browser) {
  await browser.openPage();
  const complaints = new Complaints(browser);
  for (const step of mode === "--lost" ? [...STEPS, lostServerIsTold] : STEPS) {
    await step(browser, complaints).catch((error) => { throw new Error(`${step.name}: ${error.message}`); });
    if (complaints.list.length) throw new Error(`${step.name}: ${complaints.list.join("\n")}`);
  }
}

const browser = new Browser();
const late = new Promise((_, reject) => setTimeout(reject, ALL_MS, new Error(`not done within ${ALL_MS / 1000} s`)));
try {
  await Promise.race([check(browser), late]);
  console.log("the page is well");
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
await browser.close();
process.exit();
