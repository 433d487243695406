// How things are written into the page. Everything that comes from the gateway becomes text and
// nothing else: paths, ids and names are chosen by whoever sends requests.

import { ms, short } from "./charts.js";

export const byId = (id) => document.getElementById(id);

export function put(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function make(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = String(text);
  return made;
}

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour12: false });
}

export const percent = (share) => (share > 0 && share < 0.001 ? "<0.1 %" : `${(share * 100).toFixed(share >= 0.1 || share === 0 ? 0 : 1)} %`);

// Rows that stay the same elements as long as their key stays: a button under the pointer must not
// be another one when it is pressed.
export class Rows {
  constructor(body, create, update) {
    this.body = body;
    this.create = create;
    this.update = update;
    this.rows = new Map();
  }

  show(items, key) {
    const seen = new Set();
    let place = this.body.firstElementChild;
    for (const item of items) {
      const name = key(item);
      seen.add(name);
      let row = this.rows.get(name);
      if (!row) {
        row = this.create(item);
        this.rows.set(name, row);
      }
      this.update(row, item);
      if (row === place) place = place.nextElementSibling;
      else this.body.insertBefore(row, place);
    }
    for (const [name, row] of this.rows) if (!seen.has(name)) { row.remove(); this.rows.delete(name); }
  }
}

function cells(row, kinds) {
  for (const kind of kinds) row.append(make("td", kind));
  return row;
}

function bar(cell, share, text) {
  if (!cell.firstElementChild) {
    const box = make("div", "bar");
    const made = document.createElement("progress");
    made.max = 1;
    box.append(made, make("span"));
    cell.append(box);
  }
  const box = cell.firstElementChild;
  box.firstElementChild.value = Math.min(1, share);
  box.classList.toggle("full", share >= 0.999);
  put(box.lastElementChild, text);
}

// -- headline and tiles ---------------------------------------------------------------------------

const MARKS = { good: "✓", warn: "▲", bad: "✕" };

export function headline(lines) {
  const [first, ...others] = lines;
  const box = byId("headline");
  box.className = `headline ${first.level}`;
  put(byId("mark"), MARKS[first.level]);
  put(byId("first"), first.text);
  byId("others").replaceChildren(...others.map((line) => make("li", "", `${MARKS[line.level]} ${line.text}`)));
  document.title = `${first.level === "good" ? "" : `${MARKS[first.level]} `}tailrace`;
}

const TILES = [
  ["rate", "Requests/s"], ["good", "Answered well"], ["refused", "Refused"], ["failed", "Failed"],
  ["first", "First byte p50 / p99"], ["total", "Total p50 / p99"], ["flight", "In flight"], ["waiting", "Waiting"],
];

export function tiles(recent, sample) {
  const place = byId("tiles");
  if (!place.children.length) {
    for (const [id, label] of TILES) {
      const tile = make("div", "tile");
      tile.id = `tile-${id}`;
      tile.append(make("div", "label", label), make("div", "value", "–"));
      place.append(tile);
    }
  }
  const good = recent.good || 0, refused = recent.refused || 0, failed = recent.failed || 0, client = recent.client || 0;
  const ended = good + refused + failed + client;
  const of = (n) => (ended ? percent(n / ended) : "–");
  const level = (n, bad) => (!ended || n / ended < 0.005 ? "" : bad);
  const pair = (times) => {
    if (!times) return "–";
    const [low, high] = [ms(times[0]), ms(times[2])];
    const unit = high.slice(high.indexOf(" "));
    return `${low.endsWith(unit) ? low.slice(0, -unit.length) : low} / ${high}`;
  };
  const tell = (id, text, kind = "") => {
    const tile = byId(`tile-${id}`);
    tile.className = `tile ${kind}`;
    put(tile.lastElementChild, text);
  };
  tell("rate", recent.seconds ? short(ended / recent.seconds) : "–");
  tell("good", of(good));
  tell("refused", of(refused), level(refused, "warn"));
  tell("failed", of(failed), level(failed, "bad"));
  tell("first", pair(recent.first));
  tell("total", pair(recent.total));
  tell("flight", short(sample.in_flight || 0));
  tell("waiting", short(sample.waiting || 0), sample.waiting ? "warn" : "");
}

// -- tables ---------------------------------------------------------------------------------------

export function endpointRows(act) {
  return new Rows(byId("endpoints").tBodies[0], (item) => {
    if (item.group !== undefined) {
      const row = make("tr", "group");
      const cell = make("td");
      cell.colSpan = 9;
      row.append(cell);
      return row;
    }
    const row = cells(make("tr"), ["id", "", "wide", "n", "n", "n", "n", "n", "n"]);
    row.cells[1].append(make("span", "state"));
    const button = make("button");
    row.cells[8].append(button);
    let asked = 0;
    button.addEventListener("click", async () => {
      const verb = button.dataset.verb;
      if (verb === "eject" && Date.now() - asked > 4000) {
        asked = Date.now();
        button.className = "sure";
        put(button, "Really eject");
        setTimeout(() => { button.className = ""; button.dataset.verb = ""; }, 4000);
        return;
      }
      asked = 0;
      button.disabled = true;
      await act(item.cluster, item.endpoint, verb);
      button.disabled = false;
      button.className = "";
      button.dataset.verb = "";
    });
    return row;
  }, (row, item) => {
    if (item.group !== undefined) return put(row.cells[0], item.group);
    const [name, state, why, flight, rate, failed, latency, share, last] = row.cells;
    put(name, item.endpoint);
    const shown = item.state === "healthy" && item.pushed_back ? "pushes" : item.state;
    state.firstElementChild.className = `state ${shown}`;
    put(state.firstElementChild, shown === "pushes" ? "pushes back" : shown);
    put(why, `${item.why} · since ${clock(item.since)}`);
    put(flight, item.in_flight);
    put(rate, short(item.rate));
    put(failed, short(item.failed));
    failed.className = item.failed > 0 ? "n bad" : "n";
    put(latency, ms(item.latency_ms));
    put(share, percent(item.share));
    const button = last.firstElementChild;
    const verb = item.state === "healthy" || item.state === "unhealthy" ? "eject" : "restore";
    if (button.dataset.verb !== verb && button.className !== "sure") {
      button.dataset.verb = verb;
      put(button, verb === "eject" ? "Eject" : "Restore");
      button.setAttribute("aria-label", `${verb} ${item.endpoint}`);
    }
  });
}

export function endpoints(rows, clusters) {
  const items = [];
  for (const cluster of clusters) {
    const more = cluster.total - cluster.endpoints.length;
    const group = `${cluster.name} · ${cluster.total - cluster.out} of ${cluster.total} serve · ${cluster.balance}${more ? ` · ${more} more in /clusters` : ""}`;
    items.push({ group, cluster: cluster.name });
    for (const each of cluster.endpoints) items.push({ ...each, cluster: cluster.name });
  }
  rows.show(items, (item) => `${item.cluster}\n${item.endpoint ?? ""}`);
}

export function routeRows() {
  return new Rows(byId("routes").tBodies[0],
    () => cells(make("tr"), ["id", "n", "n", "n", "", "wide", "n", "n", "n", "n"]),
    (row, item) => {
      const [name, rate, refused, failed, limit, why, waiting, budget, retries, hedges] = row.cells;
      put(name, item.name);
      put(rate, short(item.rate));
      put(refused, item.rate ? percent(item.refused / item.rate) : "–");
      refused.className = item.refused > 0 ? "n warn" : "n";
      put(failed, item.rate ? percent(item.failed / item.rate) : "–");
      failed.className = item.failed > 0 ? "n bad" : "n";
      if (item.limit === undefined) put(limit, "no limit");
      else bar(limit, item.permits / Math.max(1, item.limit), `${short(item.permits)} of ${short(item.limit)}`);
      put(why, item.overloaded ? `overloaded, its queue stands; limit: ${item.limit_why}` : item.limit_why ?? "–");
      put(waiting, item.waiting === undefined ? "–" : `${item.waiting} of ${item.queue_size}`);
      waiting.className = item.waiting ? "n warn" : "n";
      put(budget, item.budget ? `${short(item.budget.balance)} left` : "off");
      put(retries, item.retries === undefined ? "off" : `${short(item.retries)}${item.retries_refused ? ` (${short(item.retries_refused)} refused)` : ""}`);
      if (!item.hedge) put(hedges, "off");
      else {
        const ends = item.hedge.ends, won = ends.won || 0;
        put(hedges, `${short(won)} / ${short(Object.values(ends).reduce((a, b) => a + b, 0) - won)}`);
      }
    });
}

export function classRows() {
  return new Rows(byId("classes").tBodies[0], () => cells(make("tr"), ["", "n", ""]), (row, [name, came, refused, seconds]) => {
    put(row.cells[0], name);
    put(row.cells[1], short(came / Math.max(1, seconds)));
    bar(row.cells[2], came ? refused / came : 0, came ? percent(refused / came) : "–");
  });
}

const CLASSES = ["critical_plus", "critical", "sheddable_plus", "sheddable"];

export function classes(rows, recent) {
  const found = recent.classes || {};
  rows.show(CLASSES.map((name) => [name, ...(found[name] || [0, 0]), recent.seconds]), (each) => each[0]);
}

export function batches(routes) {
  const batched = routes.filter((each) => each.batching);
  byId("batches").hidden = !batched.length;
  if (!batched.length) return;
  const plain = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : typeof value === "number" ? short(value) : String(value));
  const keys = [...new Set(batched.flatMap((each) => Object.keys(each.batching)))].slice(0, 12);
  byId("batch-head").replaceChildren(make("th", "", "Route"), ...keys.map((key) => make("th", "n", key.replaceAll("_", " "))));
  byId("batches").querySelector("tbody").replaceChildren(...batched.map((each) => {
    const row = make("tr");
    row.append(make("td", "id", each.name), ...keys.map((key) => make("td", "n", key in each.batching ? plain(each.batching[key]) : "–")));
    return row;
  }));
}

// -- lists ----------------------------------------------------------------------------------------

const DOTS = { bad: ["✕", "bad"], warn: ["▲", "warn"], good: ["✓", "good-text"], info: ["·", "muted"] };

export function events(all) {
  byId("events").replaceChildren(...all.slice(-100).reverse().map((each) => {
    const item = make("li");
    const [mark, kind] = DOTS[each.level] || DOTS.info;
    item.append(make("time", "", clock(each.at)), make("span", `dot ${kind}`, mark), make("span", "", each.text));
    return item;
  }));
}

export function notableRows(explain) {
  return new Rows(byId("notable").tBodies[0], (item) => {
    const row = cells(make("tr"), ["", "", "id", "id", "n", "", "id", "n", "n"]);
    row.addEventListener("click", () => explain(item.request_id));
    row.cells[0].textContent = clock(item.at);
    row.cells[1].append(make("span", `state ${item.kind}`, item.kind));
    row.cells[2].append(make("button", "link", item.request_id));
    row.cells[3].textContent = item.route;
    row.cells[4].textContent = item.status;
    row.cells[5].textContent = item.reason;
    row.cells[6].textContent = item.endpoint;
    row.cells[7].textContent = item.attempts;
    row.cells[8].textContent = ms(item.ms);
    return row;
  }, () => {});
}

export function explained(exchanges) {
  const place = byId("explained");
  const parts = [];
  for (const each of exchanges) {
    const what = each.method ? `${each.method} ${each.path}` : "refused before its head was understood";
    parts.push(make("h3", "", `${each.request_id} · ${what}`));
    const took = `${each.status} after ${ms(each.ms)}, first byte ${ms(each.first_byte_ms)}, ${each.attempts} attempts, from ${each.client || "a unix socket"}`;
    parts.push(make("div", "muted", `${clock(each.at)} · ${each.kind}${each.reason ? ` · ${each.reason}` : ""}${each.detail ? `: ${each.detail}` : ""} · ${took}`));
    parts.push(lines(each.filters.map((row) => [row.filter, row.decided, row.why])));
    if (each.attempted.length) {
      parts.push(make("h3", "", "Attempts"));
      parts.push(lines(each.attempted.map((row) => [`+${ms(row.at_ms)}`, row.what, `${row.endpoint}${row.ms === null ? "" : ` · ${ms(row.ms)}`} · ${row.result}`])));
    }
  }
  place.replaceChildren(...parts);
  place.hidden = false;
}

function lines(rows) {
  const table = make("table");
  const body = make("tbody");
  for (const [first, second, third] of rows) {
    const row = make("tr");
    const state = make("td");
    state.append(make("span", `state ${second}`, second));
    row.append(make("td", "", first), state, make("td", "wide", third));
    body.append(row);
  }
  table.append(body);
  return table;
}
