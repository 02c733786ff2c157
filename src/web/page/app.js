"use strict";
// The dashboard: one page over this server's HTTP interface, without a library.
//
// A view is a function from the state to plain data (`h`); `patch` changes only the nodes of the document that differ, so
// focus, selection and scroll positions stay. The server's text becomes text nodes and attribute values, never markup.

// ---- Documents from data

const find = (selector) => document.querySelector(selector);

// `h("p.hint", { title }, "text", others)`; the attributes may be left out.
function h(name, ...rest) {
  const [tag, kind] = name.split(".");
  const isNode = (value) => value === null || typeof value !== "object" || Array.isArray(value) || value.tag;
  const attributes = rest.length && !isNode(rest[0]) ? rest.shift() : {};
  return { tag, attributes: kind ? { class: kind, ...attributes } : attributes, children: nodes(rest) };
}

// What is absent becomes an empty text, so that the nodes behind it keep their places.
function nodes(children) {
  return children.flat(Infinity).map((child) => (child?.tag ? child : String(child || child === 0 ? child : "")));
}

function dress(node, before, after) {
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    const value = after[name];
    if (before[name] === value || name === "key") continue;
    if (["value", "disabled", "selected"].includes(name)) node[name] = value;
    else if (value === undefined || value === null || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value);
  }
}

function make(wanted, parent) {
  if (typeof wanted === "string") return document.createTextNode(wanted);
  const space = wanted.tag === "svg" ? "http://www.w3.org/2000/svg" : parent.namespaceURI;
  const node = document.createElementNS(space, wanted.tag);
  patch(node, wanted.children);
  dress(node, {}, wanted.attributes);
  return node;
}

function patch(parent, wanted) {
  // What stood there before is for readers without scripts.
  if (!parent.drawn) parent.replaceChildren();
  const had = parent.drawn || [];
  wanted.forEach((want, index) => {
    const have = had[index], node = parent.childNodes[index];
    if (have === want) return;
    if (have === undefined) parent.append(make(want, parent));
    else if (!have.tag && !want.tag) node.data = want;
    else if (have.tag === want.tag && have.attributes.key === want.attributes.key) {
      patch(node, want.children);
      dress(node, have.attributes, want.attributes);
    } else node.replaceWith(make(want, parent));
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
  parent.drawn = wanted;
}

const put = (selector, ...content) => patch(find(selector), nodes(content));

// ---- Words

const ENDS = ["succeeded", "failed", "timed_out", "cancelled", "dead"];
const RETRYABLE = ENDS.slice(1);
const NONE = "–";
const digits = new Intl.NumberFormat("en");

const plain = (name) => String(name).replaceAll("_", " ");
const isNumber = Number.isFinite;
const count = (number) => (isNumber(number) ? digits.format(number) : NONE);
const several = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
const sum = (list, value) => list.reduce((total, item) => total + (value(item) || 0), 0);
const given = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value));
const isEnded = (job) => ENDS.includes(job.status);
const start = (id) => id.slice(0, 12);

function short(number) {
  return number >= 100 ? count(Math.round(number)) : String(Number(number.toPrecision(2)));
}

function seconds(value) {
  if (!isNumber(value)) return NONE;
  if (value === 0) return "0 s";
  if (value < 0.0009995) return `${short(value * 1e6)} µs`;
  if (value < 0.9995) return `${short(value * 1e3)} ms`;
  if (value < 60) return `${Number(value.toPrecision(3))} s`;
  const [size, name, part, partName] =
    value < 3600 ? [60, "min", 1, "s"] : value < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  return `${Math.floor(value / size)} ${name} ${Math.floor((value % size) / part)} ${partName}`;
}

function bytes(value) {
  if (!isNumber(value)) return NONE;
  if (value < 1024) return several(value, "byte");
  const step = Math.min(4, Math.floor(Math.log2(value) / 10));
  return `${Number((value / 1024 ** step).toPrecision(3))} ${["", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

// This computer's time, as 2026-01-31T12:00:00.000.
function local(time) {
  const at = new Date(time);
  return new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, -1);
}

// With the day unless that is today.
function clock(time, end = 8) {
  const [day, hour] = local(time).split("T");
  return (local(Date.now()).startsWith(day) ? "" : `${day} `) + hour.slice(0, end);
}

const moment = (time, end) => (time ? h("time", { datetime: time, title: `${time} (UTC)` }, clock(time, end)) : NONE);
// With milliseconds.
const exact = (time) => moment(time, 12);

// Records have milliseconds.
function between(from, to) {
  if (!from || !to) return NONE;
  const time = Math.max(0, Date.parse(to) - Date.parse(from));
  return time ? seconds(time / 1000) : "< 1 ms";
}

// ---- State

const state = {
  token: "",
  // "", or why a token is asked for.
  locked: "",
  // connecting, live, polling, lost.
  link: "connecting",
  lostSince: 0,
  lostWhy: "",
  heardAt: 0,
  viewer: null,
  figures: null,
  backendSince: 0,
  interval: 5,
  samples: [],
  // How many ms before the last sample the pointer is, in all four charts.
  cursor: null,
  said: "",
};
let view = null;

const isAdmin = () => Boolean(state.viewer?.admin);
const handlers = () => state.figures?.handlers || [];
const handlerNamed = (name) => handlers().find((handler) => handler.name === name);
const lag = () => Math.max(0, ...handlers().map((handler) => handler.oldest_seconds));

// ---- Server

const ANSWER_MS = 20000;
const QUIET_MS = 8000;
const POLL_MS = 2000;
const KEPT_MS = 15 * 60 * 1000;

// The server answered, and refuses.
class Refused extends Error {
  constructor(status, { code, detail, title }) {
    super(detail || title || "no reason was given");
    this.status = status;
    this.code = code || "refused";
  }
  toString() {
    return `${this.status} ${plain(this.code)}: ${this.message}.${this.status === 403 ? " The token may not do that." : ""}`;
  }
}

const whyNot = (error, otherwise = "The server did not answer.") => (error instanceof Refused ? String(error) : otherwise);

// A good answer, or it throws; 401 asks for the token as well.
async function request(method, path, { body, signal } = {}) {
  const asked = state.token;
  const headers = asked ? { Authorization: `Bearer ${asked}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const options = { method, headers, signal, credentials: "omit", redirect: "error" };
  const answer = await fetch(path, { ...options, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const refused = new Refused(answer.status, await answer.json().catch(() => ({})));
  if (refused.status === 401 && asked === state.token) lock(refused);
  throw refused;
}

async function call(method, path, body, time = ANSWER_MS) {
  return (await request(method, path, { body, signal: AbortSignal.timeout(time) })).json();
}

function lock(refused) {
  state.locked = refused.status === 403 ? `This token needs the scope read or admin: ${refused.message}.`
    : state.token ? `The token was not accepted: ${refused.message}.` : "This server asks for a token.";
  forget();
  watcher.abort();
  draw();
}

function forget() {
  Object.assign(state, { token: "", viewer: null, figures: null, samples: [] });
}

// ---- Figures as they come

let watcher = new AbortController();
let wake = () => {};

const rest = (milliseconds) => new Promise((resolve) => {
  wake = resolve;
  setTimeout(resolve, milliseconds);
});

function startWatching() {
  watcher.abort();
  watcher = new AbortController();
  state.locked = "";
  setLink("connecting");
  watch(watcher.signal);
}

// Greets and follows, until the signal; where nobody answers it waits longer each time, 10 s at most.
async function watch(signal) {
  for (let failures = 0; !signal.aborted;) {
    try {
      await greet(signal);
      failures = 0;
      await follow(signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 403) return lock(error);
      if (state.link !== "lost") state.lostSince = state.heardAt || Date.now();
      state.lostWhy = whyNot(error, "");
      setLink("lost");
      failures += 1;
      await rest(Math.min(10000, 500 * 2 ** failures));
    }
  }
}

// The figures say who looks; those of the stream do not.
async function greet(signal) {
  const figures = await call("GET", "/v1/stats", null, QUIET_MS);
  if (signal.aborted) return;
  state.viewer = figures.viewer;
  takeFigures(figures);
  if (state.link !== "lost") return;
  setLink("connecting");
  say("The server answers again.");
  load();
}

// A stream that says nothing (no room, or a proxy holds it back) is none: half a minute of polling, then again.
async function follow(signal) {
  const events = await stream(signal);
  for (let round = 0; events === 0 && round < 15 && !signal.aborted; round += 1) {
    setLink("polling");
    await rest(POLL_MS);
    if (signal.aborted) return;
    const before = state.figures, figures = await call("GET", "/v1/stats");
    takeFigures(figures);
    takeDifference(before, figures);
  }
  if (events === 0) return;
  setLink("connecting");
  await rest(500);
}

// How many events came before the stream ended; the next greeting tells whether the server is lost as well.
async function stream(signal) {
  const aborter = new AbortController();
  const stop = () => aborter.abort();
  let timer = setTimeout(stop, QUIET_MS), events = 0;
  signal.addEventListener("abort", stop);
  try {
    const answer = await request("GET", "/v1/events", { signal: aborter.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = "", part = {}; !part.done;) {
      part = await reader.read();
      clearTimeout(timer);
      timer = setTimeout(stop, QUIET_MS);
      const blocks = (text + (part.value || "")).replaceAll("\r\n", "\n").split("\n\n");
      text = blocks.pop();
      for (const block of blocks) events += takeEvent(block);
    }
  } catch (error) {
    if (error.status === 403) throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    stop();
  }
  return events;
}

const EVENTS = {
  history: ({ interval_seconds: interval, samples }) => Object.assign(state, { interval, samples }),
  figures: takeFigures,
  sample: takeSample,
  ended: takeEnded,
  lost: ({ events }) => { view.unseen += events; },
};

// 1 for an event, 0 for a comment.
function takeEvent(block) {
  const field = (name) => block.split("\n").find((line) => line.startsWith(name))?.slice(name.length);
  const take = EVENTS[field("event:")?.trim()];
  if (!take) return 0;
  setLink("live");
  take(JSON.parse(field("data:")));
  draw();
  return 1;
}

function takeSample(sample) {
  const oldest = Date.parse(sample.at) - KEPT_MS;
  state.samples = [...state.samples, sample].filter((one) => Date.parse(one.at) >= oldest);
}

// While the backend is away its last figures are shown, and the banner says so.
function takeFigures(figures) {
  const { handlers: list, totals } = state.figures || {};
  state.heardAt = Date.now();
  state.backendSince = figures.backend_error ? state.backendSince || Date.now() : 0;
  state.figures = { ...figures, handlers: figures.handlers || list, totals: figures.totals || totals };
  view.counted ??= counted();
  draw();
}

// Polled figures have no samples: the difference of two is one, without the jobs' times.
function takeDifference(before, { totals, handlers: list }) {
  if (!totals || !before.totals) return;
  const ended = (of, ends) => sum(of, (handler) => sum(ends, (end) => handler.finished[end]));
  const grown = (...ends) => ended(list, ends) - ended(before.handlers, ends);
  const submitted = totals.submitted - before.totals.submitted, succeeded = grown("succeeded"), failed = grown(...RETRYABLE);
  // The counters began anew in between.
  if (Math.min(submitted, succeeded, failed) < 0) return;
  takeSample({
    ...totals, at: new Date().toISOString(), seconds: POLL_MS / 1000, submitted, succeeded, failed, oldest_seconds: lag(),
  });
}

// A job that is shown changes in its place; others only count, so that no row moves under the reader.
function takeEnded(ends) {
  const { name, id, filter } = view.route;
  for (const end of ends) {
    if (name === "job" && id === end.id) load();
    const index = view.jobs ? view.jobs.findIndex((job) => job.id === end.id) : -1;
    const matches = (!filter.status || filter.status === end.status) && (!filter.handler || filter.handler === end.handler);
    if (index < 0) view.unseen += matches ? 1 : 0;
    else if (!isEnded(view.jobs[index])) {
      view.jobs[index] = { ...view.jobs[index], status: end.status, finished_at: end.finished_at, waiting_for: null };
      view.rows = null;
    }
  }
}

function setLink(link) {
  if (state.link !== link) draw();
  state.link = link;
}

// ---- Routes, and what they load

const PAGE = 100;

function routeOf(hash) {
  const [path, query] = hash.replace(/^#?\/?/, "").split("?");
  const [name, more] = path.split("/");
  const filter = given(Object.fromEntries(new URLSearchParams(query)));
  if (!path) return { name: "overview", filter };
  if (path === "jobs") return { name: "jobs", filter };
  if (name === "jobs" && /^[0-9a-f]{32}$/.test(more)) return { name: "job", id: more, filter };
  if (name === "handlers" && /^[\w-]+$/.test(more)) return { name: "handler", handler: more, filter };
  return { name: "nowhere", filter };
}

const toJobs = (filter) => `#/jobs?${new URLSearchParams(given(filter))}`.replace(/\?$/, "");
const toJob = (id) => `#/jobs/${id}`;
const toHandler = (name) => `#/handlers/${name}`;

function show() {
  view = { route: routeOf(location.hash), unseen: 0, bytes: {} };
  load();
  drawNow();
}

// Who cannot see the page change is taken to its new heading.
function arrive() {
  if (find("#ask").open) leave();
  state.said = "";
  show();
  scrollTo(0, 0);
  focusHeading();
}

const focusHeading = () => find("main h1")?.focus({ preventScroll: true });

const LOADERS = {
  async jobs({ filter }) {
    const { jobs, next } = await call("GET", jobsPath(filter, PAGE));
    return { jobs, next, rows: null, unseen: 0, counted: state.figures ? counted() : null };
  },
  async job({ id }) {
    const job = await call("GET", `/v1/jobs/${id}`);
    return { job, others: await call("GET", jobsPath({ trace: job.trace_id }, 50)) };
  },
  handler: ({ handler }) => call("GET", `/v1/lanes/${handler}`),
};

// The server decodes the key alone; the others' characters need no escapes.
function jobsPath({ page, key, ...others }, limit) {
  const query = given({ limit, ...others, key: key && encodeURIComponent(key) });
  return `/v1/jobs?${Object.entries(query).map((pair) => pair.join("=")).join("&")}`;
}

async function load() {
  const mine = view, loader = LOADERS[mine.route.name];
  if (!loader || state.locked) return;
  const turn = mine.turn = {};
  const loaded = await loader(mine.route).catch((problem) => ({ problem }));
  // What was asked for later, as after an action, is what counts.
  if (mine.turn === turn) Object.assign(mine, { problem: null, ...loaded, turn: null, loadedAt: Date.now() });
  draw();
}

// The counter that grows with this list; NaN where none does.
function counted() {
  const { status, handler, key, trace, before, after } = view.route.filter;
  if (key || trace || before || after) return NaN;
  const of = handlers().filter((one) => !handler || one.name === handler);
  return sum(of, (one) => (ENDS.includes(status) ? one.finished[status] : one.submitted));
}

// Counters are of everybody's jobs; who sees only its own is told of its own ends.
function newRows() {
  const grown = counted() - view.counted;
  return grown > 0 ? (isAdmin() ? grown : view.unseen) : 0;
}

// Each second: what is open and may have changed is loaded again, unless the reader is at it.
function beat() {
  if (document.hidden || view.turn || !["live", "polling"].includes(state.link)) return;
  const age = Date.now() - (view.loadedAt || 0);
  const isOpen = view.job && !isEnded(view.job);
  if (age > 2000 && (isOpen || (view.lanes && !find("#lanes:hover, #lanes:focus-within")))) load();
  if (isOpen) draw();
}

// ---- Pieces of views

const unseen = (...text) => h("span.unseen", text);
const hint = (...text) => h("p.hint", text);
const link = (href, ...text) => h("a", { href }, text);
const heading = (...content) => h("h1", { tabindex: "-1" }, content);
const section = (title, ...content) => h("section", h("h2", title), content);
const badge = (status, text = plain(status)) => h("span", { class: `badge is-${status}` }, text);
const jobLink = (id) => h("a.id", { href: toJob(id), title: id }, start(id));
const keyOf = ({ ordering_key: key }) => (key === null ? NONE : h("code", key));
const asking = () => hint("Asking the server.");

const button = (text, deed, attributes) => h("button", { type: "button", "data-do": deed, ...attributes }, text);

// `columns`: [heading, cell of an item, class]; the first cell heads its row. Wide tables scroll in a region of their own.
function table(caption, columns, items, none, id) {
  if (!items.length) return hint(none);
  const shown = columns.filter(Boolean);
  const heads = shown.map(([text, , kind]) => h("th", { scope: "col", class: kind }, kind === "act" ? unseen(text) : text));
  const rows = items.map((item) => h("tr", shown.map(([, cell, kind], index) =>
    (index ? h("td", { class: kind }, cell(item)) : h("th", { scope: "row" }, cell(item))))));
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": caption, id, key: "table" },
    h("table", h("caption.unseen", caption), h("thead", h("tr", heads)), h("tbody", rows)));
}

const titled = (title, columns, items, none, ...more) => section(title, table(title, columns, items, none), more);

const jobsLink = (status, number, handler) => link(toJobs({ status, handler }), count(number));

function facts(...list) {
  return h("dl", list.filter(Boolean).map(([name, value]) => h("div", h("dt", name), h("dd", value))));
}

function problemNote(error) {
  // Of a lost server the banner tells already.
  if (!error || (state.link === "lost" && !(error instanceof Refused))) return "";
  return h("p.problem", { role: "alert" }, whyNot(error), " ", button("Try again", "refresh"));
}

// Why a queued job, or a lane, does not run now.
function reasonWords({ reason, until, head }) {
  return {
    lane: () => ["behind ", head ? jobLink(head) : "another job", " in its lane"],
    paused: () => "its handler is paused",
    workers: () => "all workers are busy",
    executor: () => "its group has no executor",
    backoff: () => ["after a failed attempt, again at ", moment(until)],
    delay: () => ["delayed until ", moment(until)],
    parked: () => [badge("dead", "parked"), "its head is dead"],
    running: () => "its head runs",
  }[reason]?.() || plain(reason);
}

const waitWords = (job) => (job.waiting_for ? reasonWords(job.waiting_for) : "");

// ---- Charts

const WIDE = 300, HIGH = 60;

// A line over [time, x, y]; it breaks where samples are missing.
function pathOf(points, isArea) {
  let path = "", first = null, last = null;
  const close = () => (isArea && last ? `L${last[1]} ${HIGH}L${first[1]} ${HIGH}Z` : "");
  for (const point of points) {
    const isGap = !last || point[0] - last[0] > state.interval * 2500;
    path += `${isGap ? `${close()}M${point[1]} ${point[2]}h0` : `L${point[1]} ${point[2]}`}`;
    if (isGap) first = point;
    last = point;
  }
  return path + close();
}

// `lines`: [name, class, value of a sample]; `main` is the one whose peak is said.
function chart(title, now, words, lines, main = 0) {
  const { samples, cursor, interval } = state;
  const end = Date.parse(samples.at(-1)?.at);
  const values = lines.map(([, , value]) => samples.map((sample) => [sample.at, value(sample)]).filter(([, number]) => isNumber(number)));
  const top = Math.max(0, ...values.flat().map(([, number]) => number)) || 1;
  const peak = values[main].reduce((best, one) => (best && best[1] >= one[1] ? best : one), null);
  const peakWords = peak ? `peak ${words(peak[1])} at ${clock(peak[0])}` : "nothing yet";
  const paths = values.map((some, index) => {
    const points = some.map(([at, number]) => {
      const time = Date.parse(at);
      return [time, (WIDE * (1 - (end - time) / KEPT_MS)).toFixed(1), (HIGH - (HIGH - 3) * (number / top)).toFixed(1)];
    });
    const kind = lines[index][1];
    return [kind === "a" && h("path.area", { d: pathOf(points, true) }), h("path", { class: `line ${kind}`, d: pathOf(points) })];
  });
  const pointed = cursor !== null && samples.find((one) => Math.abs(end - cursor - Date.parse(one.at)) <= interval * 500);
  const read = ([, kind, value]) => [" ", h("span", { class: kind }, words(value(pointed)))];
  const said = pointed ? [clock(pointed.at), lines.map(read)] : peakWords;
  const cursorX = cursor === null ? -9 : WIDE * (1 - cursor / KEPT_MS);
  return h("figure",
    h("figcaption", title, h("strong", now)),
    h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img", "data-chart": "",
      "aria-label": `${title}, the last 15 minutes: now ${now}, ${peakWords}` },
      h("path.grid", { d: `M0 ${HIGH / 2}H${WIDE}M${WIDE / 3} 0V${HIGH}M${WIDE * 2 / 3} 0V${HIGH}` }), paths,
      h("path.cursor", { d: `M${cursorX} 0V${HIGH}` })),
    h("p.legend", lines.map(([name, kind]) => h("span", { class: kind }, name))), h("p", said));
}

function charts() {
  const per = (number, sample) => number / (sample.seconds || state.interval);
  const rate = (number) => (isNumber(number) ? `${short(number)}/s` : NONE);
  const ended = (sample) => per(sample.succeeded + sample.failed, sample);
  const last = state.samples.at(-1);
  return h("div.charts",
    chart("Throughput", rate(last && ended(last)), rate, [["ended", "a", ended],
      ["submitted", "b", (one) => per(one.submitted, one)], ["unsuccessful", "bad", (one) => per(one.failed, one)]]),
    chart("Latency p50 / p99, estimated", `${seconds(last?.p50)} / ${seconds(last?.p99)}`, seconds,
      [["p50", "a", (one) => one.p50], ["p99", "b", (one) => one.p99]], 1),
    chart("Queue depth", count(state.figures.totals?.queued), count,
      [["queued", "a", (one) => one.queued], ["running", "b", (one) => one.running]]),
    chart("Lag", seconds(lag()), seconds, [["age of the oldest that waits", "a", (one) => one.oldest_seconds]]));
}

function pointAt({ target, clientX }) {
  const box = target.closest?.("[data-chart]")?.getBoundingClientRect();
  const cursor = box ? KEPT_MS * (1 - (clientX - box.left) / box.width) : null;
  if (cursor !== state.cursor) draw();
  state.cursor = cursor;
}

// ---- Overview

function overview() {
  const all = () => [attention(), charts(), totals(), handlersTable(), h("div.pair", groupsTable(), processesTable())];
  return [heading("Overview"), state.figures ? all() : asking()];
}

// What an operator should look at, a sentence each.
function attention() {
  const found = state.figures.groups.filter((group) => !group.executors).map(({ name }) => [`The group ${name} has no executor.`]);
  for (const { name, paused, parked, queued } of handlers()) {
    if (parked) found.push([link(toHandler(name), name), ` has ${several(parked, "parked lane")}: a dead job holds the jobs behind it.`]);
    if (paused) found.push([link(toHandler(name), name), ` is paused; ${several(queued, "job waits", "jobs wait")}.`]);
  }
  if (!found.length) return hint("No handler is paused, no lane is parked, every group has an executor.");
  return h("ul.attention", { "aria-label": "Needs attention" }, found.map((text) => h("li", text)));
}

function totals() {
  const all = state.figures.totals;
  if (!all) return "";
  const figure = (field, name = plain(field)) => [name, count(all[field])];
  const to = (status, number) => [plain(status), jobsLink(status, number)];
  const ended = (status) => to(status, sum(handlers(), (handler) => handler.finished[status]));
  return h("section", { "aria-label": "Totals" },
    facts(figure("submitted"), to("queued", all.queued), to("running", all.running), ...ENDS.map(ended),
      ["callers waiting", count(state.figures.waiters)], figure("redelivered"), figure("late", "late ends"),
      figure("duplicate", "duplicate ends"), figure("suspects"), figure("leases"), figure("lanes"), figure("records"),
      figure("idempotency_keys"), ["lane state", bytes(all.state_bytes)]),
    all.submitted === 0 && hint("Nothing has been submitted yet. Try ",
      h("code", `curl -d '{"hello":1}' ${location.origin}/v1/jobs/${handlers()[0]?.name || "echo"}`)));
}

function handlersTable() {
  const to = (status, number, { name }) => (number ? jobsLink(status, number, name) : h("span.hint", "0"));
  return titled("Handlers", [
    ["Handler", ({ name }) => link(toHandler(name), name)],
    ["State", stateBadges],
    ["Queued", (one) => to("queued", one.queued, one), "n"],
    ["Running", (one) => to("running", one.running, one), "n"],
    ["Lag", (one) => seconds(one.oldest_seconds), "n"],
    ...ENDS.map((end) => [plain(end), (one) => to(end, one.finished[end], one), ["failed", "dead"].includes(end) ? "n alarm" : "n"]),
    ["Ran p50 / p99", (one) => quantiles(one.job_seconds), "n"],
    ["Group", (one) => one.group, "wide"],
    isAdmin() && ["Actions", pauseButton, "act"],
  ], handlers());
}

const estimated = (...text) => h("span", { title: "Estimated from the buckets of a histogram" }, text);
const quantiles = ({ p50, p99 }) => (isNumber(p50) ? estimated(`about ${seconds(p50)} / ${seconds(p99)}`) : NONE);

function stateBadges({ paused, parked }) {
  return [paused ? badge("paused") : badge("open"), Boolean(parked) && badge("dead", `${count(parked)} parked`)];
}

function pauseButton({ name, paused }) {
  return button([paused ? "Resume" : "Pause", unseen(` ${name}`)], paused ? "resume" : "pause", { "data-name": name });
}

// Only the reasons that there were: "crashed 1, killed 2".
function reasonCounts(counts) {
  return Object.entries(counts).filter(([, number]) => number).map(([reason, number]) => `${plain(reason)} ${count(number)}`).join(", ")
    || h("span.hint", "none");
}

function groupsTable() {
  return titled("Groups", [
    ["Group", (one) => one.name],
    ["Executors", (one) => count(one.executors), "n"],
    ["Busy workers", (one) => `${count(one.busy)} of ${count(one.workers * one.executors)}`, "n"],
    ["Restarts", (one) => reasonCounts(one.restarts)],
    ["Recycled", (one) => reasonCounts(one.recycled)],
  ], state.figures.groups);
}

function processesTable() {
  const { processes } = state.figures;
  return titled("Processes", [
    ["Process", (one) => one.role],
    ["Group", (one) => one.group || NONE],
    ["Host", (one) => one.host || NONE],
    ["Pid", (one) => one.pid ?? NONE, "n"],
    ["Busy", (one) => (one.role === "executor" ? count(one.busy) : NONE), "n"],
    ["Memory", (one) => bytes(one.rss_bytes), "n"],
  ], processes, "", hint(`Memory together: ${bytes(sum(processes, (one) => one.rss_bytes))}.`));
}

// ---- One handler

function handlerView({ handler: name }) {
  const handler = handlerNamed(name), title = heading(h("span.hint", "Handler "), name);
  if (!handler) return [title, state.figures ? hint("There is no such handler.") : asking()];
  const to = (status, number) => [plain(status), jobsLink(status, number, name)];
  return [
    h("div.bar", title, stateBadges(handler), h("div.actions", isAdmin() && pauseButton(handler))),
    facts(["group", handler.group], ["submitted", jobsLink("", handler.submitted, name)],
      to("queued", handler.queued), to("running", handler.running),
      ["lag", seconds(handler.oldest_seconds)], ["lanes", count(handler.lanes)], ["parked lanes", count(handler.parked)],
      ...ENDS.map((end) => to(end, handler.finished[end])), ["ran p50 / p99", quantiles(handler.job_seconds)],
      ["waited p50 / p99", quantiles(handler.queue_wait_seconds)]),
    section("Lanes", problemNote(view.problem), view.lanes ? lanesTable() : !view.problem && asking()),
  ];
}

function lanesTable() {
  const note = `As of ${clock(view.loadedAt)}; it stays still while the pointer or the focus is in it.`;
  return [view.lanes.length > 0 && hint(note, view.more ? " There are more lanes." : ""), table("Lanes", [
    ["Ordering key", keyOf],
    ["Why it waits", reasonWords],
    ["Jobs", (lane) => count(lane.length), "n"],
    ["Oldest", (lane) => seconds(lane.oldest_seconds), "n"],
    ["Head", (lane) => jobLink(lane.head)],
    isAdmin() && ["Actions", laneButtons, "act"],
  ], view.lanes, "No job waits or runs.", "lanes")];
}

function laneButtons({ head, reason, ordering_key: key }) {
  if (reason !== "parked") return "";
  const data = { "data-id": head, "data-lane": key || "" }, which = unseen(` ${key || start(head)}`);
  return [button(["Unpark", which], "unpark", data), " ", button(["Retry head", which], "retry", data)];
}

// ---- Jobs

const TABS = ["", "queued", "running", ...RETRYABLE, "succeeded"];

function jobsView({ filter }) {
  return [heading("Jobs"), tabs(filter), filterForm(filter), jobsBar(filter), problemNote(view.problem), jobsTable()];
}

function tabs(filter) {
  return h("nav.tabs", { "aria-label": "Jobs by status" }, h("ul", TABS.map((status) => {
    const number = ["queued", "running"].includes(status) && state.figures?.totals?.[status];
    const href = toJobs({ ...filter, status, after: "", page: "" }), isHere = (filter.status || "") === status;
    return h("li", h("a", { href, "aria-current": isHere && "page" },
      plain(status) || "recent", isNumber(number) && h("span.hint", ` ${count(number)}`)));
  })));
}

function filterForm(filter) {
  const names = new Set(["", ...handlers().map((handler) => handler.name), filter.handler || ""]);
  const options = [...names].map((value) => h("option", { value, selected: (filter.handler || "") === value }, value || "all"));
  const isFiltered = filter.handler || filter.key || filter.before || filter.trace;
  const before = Date.parse(filter.before) ? local(filter.before).slice(0, 19) : "";
  return h("form.filter", { "data-form": "filter", key: toJobs(filter) },
    h("label", "Handler ", h("select", { name: "handler" }, options)),
    h("label", "Ordering key ", h("input", { name: "key", value: filter.key || "", autocomplete: "off" })),
    h("label", "Submitted before ", h("input", { name: "before", type: "datetime-local", step: "1", value: before })),
    filter.trace && h("span", "Trace ", h("code", start(filter.trace)),
      h("input", { type: "hidden", name: "trace", value: filter.trace })),
    h("button", "Filter"), isFiltered && link(toJobs({ status: filter.status }), "Clear"));
}

function jobsBar(filter) {
  const { jobs, next } = view, page = Number(filter.page) || 1, first = (page - 1) * PAGE + 1, fresh = newRows();
  const range = jobs?.length ? `${count(first)} to ${count(first + jobs.length - 1)}, newest first, as of ${clock(view.loadedAt)}` : "";
  const mayAll = isAdmin() && !filter.trace && (filter.status || filter.handler || filter.key || filter.before);
  const fits = (...statuses) => mayAll && (!filter.status || statuses.includes(filter.status));
  const way = (to, text) => (to ? h("a.button", { href: to }, text) : h("span.button off", text));
  const news = filter.status && !ENDS.includes(filter.status) ? "Changed, show" : `${count(fresh)} new, show`;
  return h("div.bar",
    button(fresh ? news : "Refresh", "refresh", { id: "refresh", class: fresh ? "strong" : null }),
    h("span.hint", jobs ? range : !view.problem && "Asking the server."),
    h("div.actions",
      fits(...RETRYABLE) && button("Retry all that match", "retry-all"),
      fits("queued", "running") && button("Cancel all that match", "cancel-all"),
      (page > 1 || next) && h("nav.actions", { "aria-label": "Pages" },
        way(page > 1 && toJobs({ ...filter, after: "", page: "" }), "Newest"),
        way(next && toJobs({ ...filter, after: next, page: page + 1 }), "Older"))));
}

const JOB_COLUMNS = [
  ["Job", (job) => jobLink(job.id)],
  ["Status", (job) => badge(job.status)],
  ["Handler", (job) => link(toHandler(job.handler), job.handler)],
];
const RAN = ["Ran", (job) => between(job.started_at, job.finished_at), "n"];

// The rows are made again when the jobs are others, not each second.
function jobsTable() {
  if (!view.jobs) return "";
  if (!view.rows || view.rowsAct !== isAdmin()) {
    view.rowsAct = isAdmin();
    view.rows = table("Jobs", [
      ...JOB_COLUMNS,
      ["Key", keyOf],
      ["Submitted", (job) => moment(job.submitted_at)],
      ["Waited", (job) => between(job.submitted_at, job.started_at), "n"],
      RAN,
      ["Deliveries", (job) => count(job.deliveries), "n"],
      ["Note", (job) => (job.error ? errorWords(job.error) : waitWords(job)), "note"],
      isAdmin() && ["Actions", (job) => jobButtons(job, unseen(` job ${start(job.id)}`)), "act"],
    ], view.jobs, "No job matches.");
  }
  return view.rows;
}

function errorWords({ code, cause, detail, title }) {
  const text = detail || title || "";
  return h("span", { title: text }, h("b", plain(cause || code)), ` ${text}`);
}

function jobButtons({ id, handler, status }, which) {
  return [
    RETRYABLE.includes(status) && button(["Retry", which], "retry", { "data-id": id }),
    ["queued", "running"].includes(status) && button(["Cancel", which], "cancel", { "data-id": id, "data-handler": handler }),
  ];
}

// ---- One job

function jobView({ id }) {
  const { job, problem } = view, title = heading(h("span.hint", "Job "), h("span.id", id));
  if (!job && problem?.status === 404) return [title, hint("There is no record of this id, or not any more, or not for this token.")];
  if (!job) return [title, problem ? problemNote(problem) : asking()];
  return [
    h("div.bar", title, badge(job.status), h("div.actions", isAdmin() && jobButtons(job))),
    problemNote(problem), jobFacts(job), job.error && h("p.problem", errorWords(job.error)), storyTable(job),
    h("div.pair", bytesView(job, "payload"), bytesView(job, "result")), traceTable(job),
  ];
}

function jobFacts(job) {
  const { handler, ordering_key: key, trace_id: trace } = job, end = job.finished_at || new Date().toISOString();
  return facts(
    ["handler", link(toHandler(handler), handler)],
    ["ordering key", key === null ? NONE : link(toJobs({ handler, key }), keyOf(job))],
    ["accepted", exact(job.submitted_at)], ["started", exact(job.started_at)], ["ended", exact(job.finished_at)],
    ["waited", between(job.submitted_at, job.started_at || end)], ["ran", between(job.started_at, end)],
    ["deliveries", count(job.deliveries)],
    job.progress != null && ["progress", JSON.stringify(job.progress)],
    ["trace", h("a.id", { href: toJobs({ trace }) }, trace)]);
}

// The steps of its life: accepted, each attempt, what it waits for or how it ended.
function storySteps(job) {
  const missing = Math.max(0, job.deliveries - job.attempts.length), now = new Date().toISOString();
  let last = job.submitted_at;
  const step = (name, at, more) => ({ name, at, after: between(last, at), ...more });
  const steps = [{ name: "Accepted", at: last }];
  job.attempts.forEach(({ started_at: from, ended_at: to, executor, outcome }, index) => {
    const came = !outcome ? badge("running", "runs") : ENDS.includes(outcome) ? badge(outcome) : badge("bad", plain(outcome));
    steps.push(step(`Attempt ${index + 1 + missing}`, from, { executor, lasted: between(from, to || now), came }));
    last = to || from;
  });
  if (job.waiting_for) steps.push(step("Waits", now, { came: waitWords(job) }));
  if (isEnded(job)) steps.push(step("Ended", job.finished_at, { after: "", came: badge(job.status) }));
  return { steps, missing };
}

function storyTable(job) {
  const { steps, missing } = storySteps(job);
  return section("Story", strip(job), table("What happened to this job", [
    ["Step", (one) => one.name],
    ["At", (one) => exact(one.at)],
    ["After", (one) => one.after, "n"],
    ["Executor", (one) => one.executor],
    ["Lasted", (one) => one.lasted, "n"],
    ["What came of it", (one) => one.came],
  ], steps), missing > 0 && hint(`${several(missing, "earlier delivery is", "earlier deliveries are")} not kept.`));
}

// Each attempt in its place between acceptance and end; the table says the same in words.
function strip(job) {
  const begin = Date.parse(job.submitted_at), end = job.finished_at ? Date.parse(job.finished_at) : Date.now();
  const place = (time) => Math.min(1000, (1000 * (Date.parse(time) - begin)) / Math.max(1, end - begin));
  const bars = job.attempts.map(({ started_at: from, ended_at: to, outcome }) => h("rect", {
    class: outcome === "succeeded" ? "good" : outcome ? "bad" : "part", height: 8,
    x: Math.min(996, place(from)).toFixed(1), width: Math.max(4, (to ? place(to) : 1000) - place(from)).toFixed(1),
  }));
  return h("svg.strip", { viewBox: "0 0 1000 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("rect.all", { width: 1000, height: 8 }), bars);
}

function traceTable(job) {
  const { jobs, next } = view.others;
  const others = jobs.filter((one) => one.id !== job.id);
  return titled("Other jobs of its trace", [...JOB_COLUMNS, ["Submitted", (one) => exact(one.submitted_at)], RAN], others,
    "No follow-ups, and no job that it follows.", next && hint(link(toJobs({ trace: job.trace_id }), "All jobs of the trace")));
}

// ---- Payload and result

const SHOWN_BYTES = 65536, SHOWN_HEX = 256;

function bytesView(job, which) {
  const title = which === "payload" ? "Payload" : "Result", shown = view.bytes[which];
  if (shown?.problem) return section(title, hint(shown.problem));
  if (shown) return section(title, hint(shown.about), h("pre", { tabindex: "0", role: "region", "aria-label": title }, shown.text));
  const show = () => button(`Show the ${which}`, "bytes", { "data-which": which });
  if (which === "payload" || job.status === "succeeded") return section(title, show());
  return section(title, hint(isEnded(job) ? "It has none." : "There is none yet."));
}

async function showBytes({ which }) {
  const mine = view;
  mine.bytes[which] = await readBytes(`/v1/jobs/${mine.route.id}/${which}`)
    .catch((error) => ({ problem: whyNot(error) }));
  draw();
}

async function readBytes(path) {
  const answer = await request("GET", path), all = new Uint8Array(await answer.arrayBuffer());
  const shown = all.subarray(0, SHOWN_BYTES), text = textOf(shown), isWhole = all.length === shown.length;
  const about = `${answer.headers.get("content-type")}, ${bytes(all.length)}.`;
  if (text === null) return { about: `${about} Binary: the first bytes.`, text: hexDump(all.subarray(0, SHOWN_HEX)) };
  return isWhole ? { about, text: prettyJson(text) } : { about: `${about} Cut off: the first ${bytes(SHOWN_BYTES)}.`, text };
}

// null: these bytes are no text. A character that the cut goes through is left out.
function textOf(shown) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(shown, { stream: true });
    return /[\0-\x08\x0e-\x1a\x1c-\x1f]/.test(text) ? null : text;
  } catch { return null; }
}

// Indents the tokens: to parse and write JSON again would round long numbers and drop repeated names.
function prettyJson(text) {
  try { JSON.parse(text); } catch { return text; }
  let depth = 0;
  const line = (change) => `\n${"  ".repeat(depth += change)}`;
  return text.replace(/("(?:[^"\\]|\\.)*")|\s+|([{[])\s*([}\]])|[{}[\],:]/g, (token, string, open, close) => {
    if (string || open) return string || open + close;
    if (/\s/.test(token)) return "";
    if (/[{[]/.test(token)) return token + line(1);
    if (/[}\]]/.test(token)) return line(-1) + token;
    return token === "," ? token + line(0) : ": ";
  });
}

function hexDump(shown) {
  const lines = [];
  for (let at = 0; at < shown.length; at += 16) {
    const some = [...shown.subarray(at, at + 16)];
    const hex = some.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const seen = some.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(47)}  ${seen}`);
  }
  return lines.join("\n");
}

// ---- The page around the views

function topView({ name }) {
  const { viewer, figures, locked } = state;
  const words = { connecting: "Connecting", live: "Live", polling: "Polling every 2 s", lost: `Lost since ${clock(state.lostSince)}` };
  const here = (routes, href, text) => h("li", h("a", { href, "aria-current": routes.includes(name) && "page" }, text));
  return [
    h("p", h("a.brand", { href: "#/" }, "Cofferdam"), figures && h("span.hint", `${figures.profile}, version ${figures.version}`)),
    h("nav", { "aria-label": "Dashboard" }, h("ul",
      here(["overview", "handler"], "#/", "Overview"), here(["jobs", "job"], "#/jobs", "Jobs"))),
    h("form", { role: "search", "data-form": "find" },
      h("input", { id: "find", name: "id", placeholder: "Job id", "aria-label": "Find a job", required: "", autocomplete: "off",
        pattern: "\\s*[0-9a-fA-F]{32}\\s*", title: "32 hex digits" }),
      h("button", "Open")),
    h("p", viewer?.name && h("span.hint", viewer.name + (viewer.admin ? "" : ", read only")),
      state.token && button("Forget the token", "forget", { class: "plain" }),
      h("span", { id: "state", class: `is-${locked ? "locked" : state.link}` }, locked ? "Token needed" : words[state.link])),
  ];
}

function alerts() {
  if (state.locked) return "";
  const since = clock(state.link === "lost" ? state.lostSince : state.backendSince || Date.now());
  if (state.link === "lost") {
    return h("p.problem", h("b", "The server is lost."), ` No figures since ${since}. `, state.lostWhy && `It said ${state.lostWhy} `,
      state.figures && "What is shown is from then. ", button("Try now", "wake"));
  }
  return state.backendSince > 0 && h("p.away", h("b", "The backend is away"),
    ` since ${since}: ${state.figures.backend_error}. Handlers and totals are the last that it told.`);
}

function tokenView() {
  return [heading("Token"), h("form", { "data-form": "token" },
    h("p", { role: "alert" }, state.locked),
    h("label", { for: "token" }, "Token with the scope read, or admin to act as well"),
    h("p.bar", h("input", { id: "token", name: "token", type: "password", autocomplete: "off", required: "" }),
      h("button", "Look")),
    h("p.hint", "It stays in the memory of this tab until that is closed or reloaded, and nowhere else."))];
}

const nowhere = () => [heading("No such page"), link("#/", "Overview")];

const VIEWS = { overview, handler: handlerView, jobs: jobsView, job: jobView, nowhere };

let isDue = false;

function draw() {
  if (!isDue) requestAnimationFrame(drawNow);
  isDue = true;
}

function drawNow() {
  isDue = false;
  const { route } = view, isLost = state.link === "lost" && !state.locked;
  const name = state.locked ? "token" : [route.name, route.id, route.handler].join(" ");
  put("#top", topView(route));
  put("#alerts", alerts());
  const kind = isLost || state.backendSince ? "view stale" : "view";
  put("#main", h("div", { class: kind, key: name }, state.locked ? tokenView() : VIEWS[route.name](route)));
  put("#said p", state.said);
  // It is never hidden: a screen reader must know it before words come.
  find("#said").className = state.said ? "" : "unseen";
  find("#said button").hidden = !state.said;
  document.title = `${isLost ? "Lost: " : ""}${find("main h1").textContent} · Cofferdam`;
}

// ---- Acting

function say(text) {
  state.said = text && `${clock(Date.now())} ${text}`;
  draw();
}

const yes = find("#ask-yes");
let asked = null;

// Asks before `act` is done. `count` is a dry run before that: it gives the lines, or null if there is nothing to do.
async function ask(question) {
  asked = question;
  putQuestion(question, question.lines, !question.count);
  find("#ask").showModal();
  if (!question.count) return;
  try {
    const lines = await question.count();
    if (asked === question) putQuestion(question, lines || ["No job matches."], lines);
  } catch (error) {
    if (asked === question) tellInDialog(error);
  }
}

function putQuestion({ title, verb }, lines, isReady) {
  put("#ask-title", title);
  put("#ask-text", lines.map((line) => h("p", line)));
  put("#ask-problem");
  put("#ask-yes", verb);
  yes.disabled = !isReady;
}

function tellInDialog(error) {
  put("#ask-problem", h("p.problem", whyNot(error, "The server did not answer. It may be done: look before you repeat it.")));
}

const leave = () => find("#ask").close();

async function act() {
  const question = asked;
  if (!question || yes.disabled) return;
  yes.disabled = true;
  try {
    say(await question.act());
  } catch (error) {
    if (asked !== question) say(`${question.title} ${whyNot(error)}`);
    else if (state.locked) leave();
    else tellInDialog(error);
    yes.disabled = false;
    return;
  }
  if (asked === question) leave();
  await afterAct();
}

async function afterAct() {
  const figures = await call("GET", "/v1/stats").catch(() => null);
  if (figures) takeFigures(figures);
  await load();
  drawNow();
  // The pressed button may have gone with the state that it changed.
  if (document.activeElement === document.body) focusHeading();
}

function askPause(name, verb, line) {
  ask({ title: `${verb} ${name}?`, verb: `${verb} ${name}`, lines: [line], act: async () => {
    const { handler, paused } = await call("POST", `/v1/handlers/${name}/${verb.toLowerCase()}`);
    return `${handler} is ${paused ? "paused" : "open"}.`;
  } });
}

// All that match the filter: first counted by a dry run, then done.
function askAll(verb, did) {
  const { status, handler, key, before } = view.route.filter;
  const filter = given({ status, handler, key, before });
  const words = Object.entries(filter).map(([name, value]) => `${name} ${name === "status" ? plain(value) : value}`).join(", ");
  const run = (isDry) => call("POST", `/v1/jobs/${verb.toLowerCase()}`, { ...filter, dry_run: isDry });
  ask({
    title: `${verb} all that match?`, verb: `${verb} them`, lines: ["Counting the jobs that match."],
    count: async () => {
      const { matched, more } = await run(true);
      const others = more ? ["There are others: at most 10,000 are taken at once."] : [];
      return matched ? [`${several(matched, "job matches", "jobs match")}: ${words}.`, ...others] : null;
    },
    act: async () => {
      const { matched, done, refused, more } = await run(false);
      const others = more ? " There are others: do it again." : "";
      return `${did} ${count(done)} of ${several(matched, "job")}, ${count(refused)} refused.${others}`;
    },
  });
}

const DEEDS = {
  pause: ({ name }) => askPause(name, "Pause", "Its queued jobs wait, and submissions go on. Running jobs end as usual."),
  resume: ({ name }) => askPause(name, "Resume", "Its queued jobs run again, and its parked lanes are looked at again."),
  retry: ({ id }) => ask({
    title: "Retry this job?", verb: "Retry it",
    lines: [`Job ${id}`, "It lives again under its id, its deliveries counted from 0, at the tail of its lane."],
    act: async () => `Job ${start(id)} lives again: it is ${plain((await call("POST", `/v1/jobs/${id}/retry`)).status)}.`,
  }),
  cancel: ({ id, handler }) => ask({
    title: "Cancel this job?", verb: "Cancel it",
    lines: [`Job ${id} of ${handler}`, "If it runs, its handler is told to stop. It can be retried later."],
    act: async () => `Job ${start(id)} is ${plain((await call("DELETE", `/v1/jobs/${id}`)).status)}.`,
  }),
  unpark: ({ id, lane }) => ask({
    title: lane ? `Unpark the lane ${lane}?` : "Unpark this lane?", verb: "Unpark it",
    lines: [`Job ${id}`, "It is dead and holds the lane. It is given up, and the lane goes on. To run it again instead, retry it."],
    act: async () => {
      await call("DELETE", `/v1/jobs/${id}`);
      return `The lane ${lane} goes on without job ${start(id)}.`;
    },
  }),
  "retry-all": () => askAll("Retry", "Retried"),
  "cancel-all": () => askAll("Cancel", "Cancelled"),
  bytes: showBytes,
  refresh: load,
  wake: () => wake(),
  forget: () => { forget(); enter(); },
  leave,
  unsay: () => say(""),
  skip: () => find("#main").focus(),
};

const FORMS = {
  find: ({ id }) => { location.hash = toJob(id.trim().toLowerCase()); },
  filter: ({ before, ...others }) => {
    location.hash = toJobs({ status: view.route.filter.status, ...others, before: before && new Date(before).toISOString() });
  },
  token: ({ token }) => { state.token = token.trim(); enter(); },
};

// Begins anew, as who the token says.
function enter() {
  startWatching();
  show();
  focusHeading();
}

document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-do]");
  if (!target) return;
  event.preventDefault();
  DEEDS[target.dataset.do](target.dataset);
});
document.addEventListener("submit", (event) => {
  const form = event.target, given = Object.fromEntries(new FormData(form));
  event.preventDefault();
  if (form.closest("dialog")) return act();
  if (form.dataset.form !== "filter") form.reset();
  FORMS[form.dataset.form](given);
});
document.addEventListener("pointermove", pointAt);
find("#ask").addEventListener("close", () => { asked = null; });
addEventListener("hashchange", arrive);
addEventListener("online", () => wake());

show();
startWatching();
setInterval(beat, 1000);
