// The cluster, asked once a second. Everything that comes from the server is put in as text, never as markup.

import { Plot, svg } from "./plot.js";

const PERIOD_MS = 1000;
const WAIT_MS = 5000;
const SECONDS = 120;
const TOKEN = "ranvier-console-token";
const API = "api";
const MAX_TROUBLES = 5;
const RANKS = { bad: 0, warn: 1, good: 2 };
const PRIVATELY = "On its machine “ranvier status” needs no token, nor does this page through the private socket "
  + "of a worker: ssh -L 8080:DATA/run/WORKER.http root@HOST (only root and the server's user may open it), "
  + "then http://localhost:8080/_ranvier/";

const $ = (id) => document.getElementById(id);
const pace = new Plot($("pace"), "Rows of the log each second", ["first"], SECONDS);
const latency = new Plot($("latency"), "Latency in milliseconds", ["first", "second"], SECONDS);
const requests = new Plot($("requests"), "Requests each second", ["first"], SECONDS);
const cards = new Map();
const byName = new Intl.Collator("en", { numeric: true }).compare;
let timer = 0;
let polls = 0; // an answer counts while no later poll was begun
let watching = true; // no token is asked for
let known = false; // the history was read

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, method = "GET") {
  const headers = { "X-Ranvier-Console": "1" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const body = method === "POST" ? "{}" : undefined;
  const response = await fetch(`${API}/${path}`, {
    method, headers, body, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(WAIT_MS),
  });
  const answer = await response.json();
  if (!response.ok) throw new Refusal(response.status, answer.error ?? `Status ${response.status}`);
  return answer;
}

async function poll() {
  clearTimeout(timer);
  watching = true;
  const own = ++polls;
  try {
    const status = await ask(known ? "status" : "status?history=true");
    if (own !== polls) return;
    show(status);
    known = true;
    document.body.classList.remove("stale");
    if ($("notice").dataset.kind === "poll") hideNotice();
  } catch (error) {
    if (own !== polls) return;
    if (error instanceof Refusal && (error.status === 401 || error.status === 403)) {
      askForToken(sessionStorage.getItem(TOKEN) ? error.message : "");
      return;
    }
    document.body.classList.add("stale");
    known = false; // what was missed is in the history
    notice(`${whyNot(error)}; trying again.`, "poll", error.status === 503 || error.name === "TimeoutError" ? PRIVATELY : "");
  }
  if (!document.hidden) timer = setTimeout(poll, PERIOD_MS);
}

function whyNot(error) {
  if (error.name === "TimeoutError") return "The server does not answer in time: it or PostgreSQL may stand still";
  if (!(error instanceof Refusal)) return `The server does not answer (${error.message})`;
  if (error.status === 503 && error.message.includes("database")) {
    return "PostgreSQL is not reachable, so nobody can be recognised";
  }
  return `The server does not tell (${error.message})`;
}

function askForToken(message) {
  clearTimeout(timer);
  watching = false;
  polls++; // what is under way was asked with the old token
  sessionStorage.removeItem(TOKEN);
  known = false;
  $("main").hidden = $("leave").hidden = true;
  $("summary").textContent = "";
  $("login").hidden = false;
  $("token").value = "";
  $("token").focus();
  hideNotice();
  if (message) notice(message, "login");
}

function notice(text, kind, hint = "") {
  $("notice").textContent = text;
  if (hint) $("notice").append(make("p", "hint", hint));
  $("notice").dataset.kind = kind;
  $("notice").hidden = false;
}

function hideNotice() {
  $("notice").hidden = true;
}

function show(status) {
  status.gone ??= []; // a worker of the release before does not tell of them
  $("login").hidden = true;
  $("main").hidden = false;
  $("leave").hidden = !sessionStorage.getItem(TOKEN);
  $("server").textContent = status.server_name;
  document.title = `${status.server_name} – Ranvier`;
  $("summary").textContent = `Ranvier ${status.version}, ${formOf(status)}, log at ${status.log.head.toLocaleString("en")}`;
  showPlots(status);
  showWorkers(status);
  showStores(status);
}

function formOf(status) {
  if (status.one_process) return "one process";
  const silent = status.workers.filter((worker) => worker.silent).length;
  const count = status.workers.length;
  return [
    `${count} worker${count === 1 ? "" : "s"}`,
    ...(silent ? [`${silent} not heard of`] : []),
    ...(status.gone.length ? [`${status.gone.length} gone`] : []),
  ].join(", ");
}

function showPlots(status) {
  const { log, now_ts: now } = status;
  if (status.history) {
    pace.moments = status.history.map(([ts, rows]) => [ts, rows]);
    latency.moments = status.history.map(([ts, , commit, delivery]) => [ts, commit, delivery]);
    requests.moments = status.history.map(([ts, , , , asked]) => [ts, asked]);
  } else {
    pace.add([now, log.rows_per_s]);
    latency.add([now, log.commit_ms, log.delivery_ms]);
    requests.add([now, log.requests_per_s]);
  }
  for (const plot of [pace, latency, requests]) plot.draw(now);
  $("pace-now").textContent = `${number(log.rows_per_s)} rows/s in ${number(log.commits_per_s)} commits/s`;
  $("commit-now").textContent = `${number(log.commit_ms)} ms`;
  $("seen-now").textContent = `${number(log.delivery_ms)} ms`;
  $("requests-now").textContent = `${number(log.requests_per_s)} /s`;
}

function showWorkers(status) {
  const shown = [
    ...status.workers.map((worker) => ({ worker, state: stateOf(worker, status) })),
    ...status.gone.map((worker) => ({ worker, state: stateOfGone(worker) })),
  ];
  // What is bad comes first: on a small screen that is what there is to be seen.
  shown.sort((one, other) => RANKS[one.state[1]] - RANKS[other.state[1]] || byName(one.worker.name, other.worker.name));
  showTrouble(status, shown.filter(({ state }) => state[1] === "bad"));
  const names = new Set(shown.map(({ worker }) => worker.name));
  for (const [name, card] of cards) {
    if (!names.has(name)) {
      card.root.remove();
      cards.delete(name);
    }
  }
  shown.forEach(({ worker, state }, index) => {
    let card = cards.get(worker.name);
    if (!card) cards.set(worker.name, card = new Card(worker.name));
    const there = $("workers").children[index];
    if (there !== card.root) $("workers").insertBefore(card.root, there ?? null);
    card.show(worker, state, status);
  });
}

function showTrouble(status, bad) {
  const stores = [["PostgreSQL", status.database], ["Redis", status.redis]].filter(([, store]) => store && !store.reachable);
  const troubles = [
    ...stores.map(([name]) => `${name}: not reachable`),
    ...bad.map(({ worker, state }) => `${worker.name}: ${state[0]}`),
  ];
  const more = troubles.length - MAX_TROUBLES;
  $("trouble").textContent = troubles.slice(0, MAX_TROUBLES).join("; ") + (more > 0 ? `; and ${more} more` : "");
  $("trouble").hidden = troubles.length === 0;
}

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

const FIGURES = {
  CPU: (worker) => `${Math.round(worker.load * 100)} %`,
  Memory: (worker) => bytes(worker.memory_bytes),
  "Requests/s": (worker) => number(worker.requests_per_s),
  "Active rooms": (worker) => number(worker.rooms),
  "Rows behind": (worker) => number(worker.lag),
  "Loop lag": (worker) => `${number(worker.loop_lag_ms)} ms`,
  "Syncs waiting": (worker) => number(worker.sync_waiting),
  Commit: (worker) => `${number(worker.commit_ms)} ms`,
  "In flight": (worker) => number(worker.in_flight),
};

class Card {
  constructor(name) {
    this.root = make("article", "worker");
    this.root.dataset.worker = name;
    const title = make("h3", "", "");
    this.state = make("span", "state");
    title.append(make("span", "", name), this.state);
    this.place = make("p", "place");
    this.roles = make("p", "place");
    this.bar = make("div", "bar");
    const drawing = svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.level = svg("rect", { width: 0, height: 1 });
    drawing.append(this.level);
    this.bar.append(drawing);
    const list = this.list = make("dl", "figures");
    this.figures = Object.keys(FIGURES).map((label) => {
      const pair = make("div");
      const value = make("dd");
      pair.append(make("dt", "", label), value);
      list.append(pair);
      return value;
    });
    this.buttons = make("div", "row");
    for (const action of ["drain", "restart"]) {
      const button = make("button", "", action === "drain" ? "Drain" : "Restart");
      button.type = "button";
      button.dataset.action = action;
      button.addEventListener("click", () => confirmed(name, action));
      this.buttons.append(button);
    }
    this.root.append(title, this.place, this.roles, this.bar, list, this.buttons);
  }

  show(worker, [state, kind], status) {
    this.state.textContent = state;
    this.state.className = `state ${kind}`;
    const gone = "gone_s_ago" in worker;
    for (const part of [this.roles, this.bar, this.list, this.buttons]) part.hidden = gone;
    this.root.classList.toggle("old", gone || worker.silent);
    if (gone) this.place.textContent = `was process ${worker.pid} on ${worker.host}, ${worker.version}`;
    else this.showFigures(worker, status);
  }

  showFigures(worker, status) {
    this.place.textContent = `process ${worker.pid} on ${worker.host}, ${worker.version}, up ${duration(status.now_ts - worker.started_ts)}`;
    this.roles.textContent = worker.roles.length === 8 ? "every role" : worker.roles.join(", ");
    this.roles.title = worker.roles.join(", ");
    this.level.setAttribute("width", Math.min(100, worker.load * 100));
    this.bar.classList.toggle("busy", worker.load > 0.9);
    Object.values(FIGURES).forEach((figure, index) => {
      const text = figure(worker);
      if (this.figures[index].textContent !== text) this.figures[index].textContent = text;
    });
    for (const button of this.buttons.children) button.hidden = !worker.actions.includes(button.dataset.action);
    this.buttons.hidden = worker.actions.length === 0;
  }
}

function stateOfGone(worker) {
  // Who was drained before is not missed.
  return [`gone for ${duration(1000 * worker.gone_s_ago)}`, worker.state === "draining" ? "warn" : "bad"];
}

function stateOf(worker, status) {
  if (worker.silent) return [`not heard of for ${duration(1000 * worker.heard_s_ago)}`, "bad"];
  if (!worker.database_reachable) return ["no database", "bad"];
  if (worker.state === "draining") return ["draining", "warn"];
  if (!worker.bus_connected) return ["no Redis", "bad"];
  if (worker.lag > Math.max(1000, 2 * status.log.rows_per_s)) return ["behind", "warn"];
  return [worker.state, "good"];
}

function showStores(status) {
  const { database: base, redis } = status;
  fill("postgresql", base.reachable
    ? [
        ["State", "reachable", "good"], ["Version", base.version], ["Up", duration(status.now_ts - base.started_ts)],
        ["Connections", `${base.connections} of ${base.max_connections}`], ["Size", bytes(base.size_bytes)],
        ["Head of the log", base.pos.toLocaleString("en")],
      ]
    : [["State", "not reachable: writes wait for it", "bad"]]);
  if (redis === null) fill("redis", [["State", "not needed by one process"]]);
  else if (!redis.reachable) fill("redis", [["State", "not reachable: workers read the log from PostgreSQL", "bad"]]);
  else if (redis.version === undefined) fill("redis", [["State", "reachable: its figures are not for the server's user", "good"]]);
  else {
    fill("redis", [
      ["State", "reachable", "good"], ["Version", redis.version], ["Up", duration(status.now_ts - redis.started_ts)],
      ["Clients", number(redis.clients)], ["Memory", bytes(redis.memory_bytes)],
      ["Commands", `${number(redis.commands_per_s)} /s`],
    ]);
  }
}

function fill(id, rows) {
  const list = $(id).querySelector("dl");
  list.replaceChildren(...rows.flatMap(([label, value, kind]) => [make("dt", "", label), make("dd", kind ?? "", value)]));
}

const TEXTS = {
  drain: ["Drain", "Its rooms move to the other workers at once, and its clients within seconds; it takes nobody any more, and /health there answers 503. That lasts until it is restarted, even if all other workers stop."],
  restart: ["Restart", "It finishes what it was given, ends, and is started again by what runs it. Its rooms move to the other workers meanwhile."],
};

function confirmed(name, action) {
  const dialog = $("ask");
  const [verb, text] = TEXTS[action];
  $("ask-title").textContent = `${verb} ${name}?`;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = verb;
  $("ask-yes").onclick = () => {
    dialog.close();
    act(name, action);
  };
  dialog.showModal();
}

async function act(name, action) {
  try {
    await ask(`workers/${encodeURIComponent(name)}/${action}`, "POST");
    hideNotice();
  } catch (error) {
    notice(`${TEXTS[action][0]} ${name}: ${error.message}`, "action");
  }
  if (watching) poll();
}

function number(value) {
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

function bytes(value) {
  if (value === null) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, value)) / 10));
  return `${number(value / 1024 ** power)} ${units[power]}`;
}

function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} days`;
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  hideNotice();
  poll();
});
$("leave").addEventListener("click", () => askForToken(""));
$("ask-no").addEventListener("click", () => $("ask").close());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && watching) {
    known = false; // the seconds that nobody watched
    poll();
  }
});
poll();
