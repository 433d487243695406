// The dashboard: asks for a stream of server-sent events and shows what comes. With fetch and not
// EventSource, because that cannot send the token, which is kept in this variable and nowhere else.

import { Charts } from "./charts.js";
import * as view from "./view.js";

const { byId, put } = view;
const SAMPLES = 600, EVENTS = 200, NOTABLE = 60;
const REASONS = 4;
let token = "";
let seen = { samples: [], events: [], notable: [] };
let lastMessage = 0;

const charts = new Charts(byId("charts"));
const per = (pick) => (samples) => samples.map((each) => (pick(each) || 0) / each.seconds_);
const quantiles = (which) => (samples) =>
  ["p99", "p95", "p50"].map((name, place) => ({ name, color: name, values: samples.map((each) => (each[which] ? each[which][2 - place] : null)) }));

charts.add("Traffic", "/s", (samples) => [
  { name: "well", color: "good", values: per((each) => each.good)(samples) },
  { name: "client's fault", color: "client", values: per((each) => each.client)(samples) },
  { name: "refused", color: "refused", values: per((each) => each.refused)(samples) },
  { name: "failed", color: "failed", values: per((each) => each.failed)(samples) },
]);
charts.add("Refused, failed, tried again", "/s", unusual, { least: 1 });
charts.add("First byte", "", quantiles("first"), { log: true });
charts.add("Total", "", quantiles("total"), { log: true });

// Why exchanges were refused or failed; and attempts that were made again or beside the first.
function unusual(samples) {
  const totals = new Map();
  for (const each of samples) for (const [name, count] of Object.entries(each.reasons || {})) totals.set(name, (totals.get(name) || 0) + count);
  const names = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
  const shown = names.slice(0, REASONS), rest = names.slice(REASONS);
  const made = shown.map((name, place) => ({ name, color: `s${place}`, values: per((each) => (each.reasons || {})[name])(samples) }));
  if (rest.length) made.push({ name: "others", color: "s4", values: per((each) => rest.reduce((sum, name) => sum + ((each.reasons || {})[name] || 0), 0))(samples) });
  const extra = [["retried", "s5", (each) => each.retries], ["hedge won", "good", (each) => each.hedges && each.hedges[0]], ["hedge wasted", "client", (each) => each.hedges && each.hedges[1]]];
  for (const [name, color, pick] of extra) if (samples.some(pick)) made.push({ name, color, values: per(pick)(samples) });
  return made.length ? made : [{ name: "nothing", color: "client", values: samples.map(() => 0) }];
}

const endpointRows = view.endpointRows(act);
const routeRows = view.routeRows();
const classRows = view.classRows();
const notableRows = view.notableRows(explain);

function join(old, more, most) {
  const last = old.length ? old[old.length - 1].id : 0;
  return old.concat(more.filter((each) => each.id > last)).slice(-most);
}

function show(told, whole) {
  const samples = whole ? told.samples : [told.sample];
  for (const each of samples) each.seconds_ = each.seconds || 1;
  seen = whole
    ? { samples, events: told.events, notable: told.notable }
    : {
        samples: seen.samples.concat(samples).slice(-SAMPLES),
        events: join(seen.events, told.events, EVENTS),
        notable: join(seen.notable, told.notable, NOTABLE),
      };
  const { state, recent } = told;
  byId("content").hidden = false;
  view.headline(told.headline);
  put(byId("version"), state.version);
  const config = state.config;
  put(byId("config"), `config ${config.hash} ${config.path ?? "from flags"} · in force since ${view.clock(config.loaded_at)}${config.last_error ? " · last reload failed" : ""} · ${state.connections} connections${state.draining ? " · draining" : ""}`);
  byId("config").className = config.last_error ? "warn" : "muted";
  recent.seconds ??= 1;
  view.tiles(recent, seen.samples[seen.samples.length - 1] || {});
  view.endpoints(endpointRows, state.clusters);
  routeRows.show(state.routes, (each) => each.name);
  put(byId("more"), state.more_routes ? `${state.more_routes} quieter routes are in /filters` : "");
  view.classes(classRows, recent);
  view.batches(state.routes);
  if (whole || told.events.length) view.events(seen.events);
  if (whole || told.notable.length) notableRows.show([...seen.notable].reverse(), (each) => each.id);
  charts.show(seen.samples, seen.events.filter((each) => each.level === "bad" || each.level === "warn"));
}

// -- asking ---------------------------------------------------------------------------------------

const headers = () => (token ? { authorization: `Bearer ${token}` } : {});

async function why(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `status ${response.status}`;
  }
}

async function act(cluster, endpoint, verb) {
  const path = `/clusters/${encodeURIComponent(cluster)}/endpoints/${encodeURIComponent(endpoint)}/${verb}`;
  try {
    const response = await fetch(path, { method: "POST", headers: headers() });
    put(byId("said"), response.ok ? `${endpoint}: ${verb}ed` .replace("restoreed", "restored") : `${endpoint}: ${await why(response)}`);
  } catch {
    put(byId("said"), `${endpoint}: the gateway does not answer`);
  }
}

async function explain(id) {
  byId("wanted").value = id;
  const place = byId("explained");
  try {
    const response = await fetch(`/explain?request_id=${encodeURIComponent(id)}`, { headers: headers() });
    if (response.ok) return view.explained((await response.json()).exchanges);
    place.replaceChildren(view.make("div", "muted", await why(response)));
  } catch {
    place.replaceChildren(view.make("div", "bad", "the gateway does not answer"));
  }
  place.hidden = false;
}

byId("find").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const wanted = byId("wanted").value.trim();
  if (wanted) explain(wanted);
});

// -- the stream -----------------------------------------------------------------------------------

function connection(kind, text) {
  byId("connection").className = `pill ${kind}`;
  put(byId("connection"), text);
  document.body.classList.toggle("stale-page", kind === "lost");
  byId("content").classList.toggle("stale", kind === "lost");
}

function lost() {
  connection("lost", lastMessage ? `no word since ${view.clock(lastMessage / 1000)}` : "not connected");
}

async function askToken(response) {
  const refused = await why(response);
  const form = byId("ask");
  form.hidden = false;
  put(byId("refusal"), token || response.status === 403 ? refused : "");
  connection("lost", "not allowed yet");
  byId("token").focus();
  await new Promise((done) => form.addEventListener("submit", (submitted) => { submitted.preventDefault(); done(); }, { once: true }));
  token = byId("token").value;
  byId("token").value = "";
  form.hidden = true;
}

async function read(response) {
  const decoder = new TextDecoder();
  let rest = "";
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const messages = rest.split("\n\n");
    rest = messages.pop();
    for (const message of messages) {
      const whole = message.startsWith("event: whole");
      show(JSON.parse(message.slice(message.indexOf("\ndata: ") + 7)), whole);
      lastMessage = Date.now();
      connection("live", "live");
    }
  }
}

async function follow() {
  for (let wait = 500; ; wait = Math.min(8000, wait * 2)) {
    try {
      const response = await fetch("/events", { headers: headers(), cache: "no-store" });
      if (response.status === 401 || response.status === 403) {
        await askToken(response);
        wait = 250;
        continue;
      }
      if (response.ok) {
        wait = 500;
        await read(response);
      } else connection("lost", await why(response));
    } catch {
      // Gone, or not there yet: said below, and asked again.
    }
    lost();
    await new Promise((done) => setTimeout(done, wait));
  }
}

setInterval(() => { if (lastMessage && Date.now() - lastMessage > 4000) lost(); }, 1000);
follow();
