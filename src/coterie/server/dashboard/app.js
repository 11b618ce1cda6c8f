// The dashboard: looks at the server again and again, and shows what it says.

import { Chat } from "./chat.js";
import { askJson, key } from "./client.js";
import { bytes, count, element, line, percent, rate, seconds, share } from "./figures.js";
import { Heat } from "./heat.js";
import { Explorer } from "./profile.js";

const find = (id) => document.getElementById(id);
const EVERY_MS = 1000;
const IDLE_MS = 3000;
const KEPT = 60;
const LATELY_S = 10;
const JUST_NOW_S = 4;

const heat = new Heat(find("heat"), find("readout"), find("legend"), find("heat-empty"));
const chat = new Chat({ onLocked: askForKey });
const explorer = new Explorer({ heat, onLocked: askForKey });
const samples = [];
const lines = { speed: [], hit: [], reads: [], queue: [] };
let known = null;
let timer = null;
let looking = false;

async function look() {
  clearTimeout(timer);
  if (looking || document.hidden) return;
  looking = true;
  let next = EVERY_MS;
  try {
    if (known === null) {
      const model = await askJson("/coterie/model");
      meet(model);
    }
    const state = await askJson("/coterie/state");
    show(state);
    trouble(null);
    if (!state.queue.running && !state.queue.waiting) next = IDLE_MS;
  } catch (error) {
    if (error.status === 401) {
      locked();
      next = null;
    } else {
      status("bad", "No connection");
      trouble(error.status ? error.message : "The server does not answer. Trying again…");
      next = IDLE_MS;
    }
  } finally {
    looking = false;
  }
  if (next !== null) timer = setTimeout(look, next);
}

function meet(model) {
  known = model;
  find("model-name").textContent = model.name;
  document.title = `${model.name} – Coterie`;
  heat.know(model);
  chat.know(model);
  explorer.know(model);
  find("key-button").hidden = key.get() === null;
}

function show(state) {
  const now = performance.now() / 1000;
  const since = (seconds) => samples.find((one) => now - one.at <= seconds) ?? samples.at(-1);
  const [old, recent] = [since(LATELY_S), since(JUST_NOW_S)];
  const last = samples.at(-1);
  samples.push({ at: now, state });
  while (samples.length > KEPT) samples.shift();
  const { experts, tokens, queue, memory } = state;

  const over = (from, pick) => (from ? Math.max(0, (pick(state) - pick(from.state)) / Math.max(1e-3, now - from.at)) : 0);
  const speed = over(recent, (s) => s.tokens.decode);
  find("speed").textContent = rate(speed);
  find("speed-under").textContent = tokens.prefill + tokens.decode
    ? `${count(tokens.decode)} generated, ${count(tokens.prefill)} of prompts` : "no answer yet";
  draw("speed", over(last, (s) => s.tokens.decode));

  const asked = (s) => s.experts.requested;
  const hits = (s) => s.experts.hits;
  const lately = old && asked(state) > asked(old.state)
    ? share(hits(state) - hits(old.state), asked(state) - asked(old.state)) : share(experts.hits, experts.requested);
  find("hit").textContent = percent(lately);
  find("hit-under").textContent = experts.requested
    ? `${percent(share(experts.hits, experts.requested))} since the start${experts.decode_requested ? `, decoding ${percent(share(experts.decode_hits, experts.decode_requested))}` : ""}`
    : "nothing asked for yet";
  draw("hit", lately ?? 0, 1);

  find("reads").textContent = `${bytes(over(recent, (s) => s.experts.bytes_read))}/s`;
  find("reads-under").textContent = experts.misses
    ? `${bytes(experts.bytes_read)} in all, waited ${seconds(experts.read_wait_s)}` : "nothing read yet";
  if (experts.left_out) {
    find("reads-under").textContent += `; ${count(experts.left_out)} experts left out (${bytes(experts.bytes_not_read)})`;
  }
  draw("reads", over(last, (s) => s.experts.bytes_read));

  find("running").textContent = count(queue.running);
  const held = memory.requests_total_bytes === null
    ? "" : `; ${bytes(memory.requests_held_bytes)} of ${bytes(memory.requests_total_bytes)} for keys and values`;
  find("waiting").textContent = `${queue.waiting ? `${count(queue.waiting)} wait` : "none wait"}${held}`;
  draw("queue", queue.running + queue.waiting);

  if (queue.trouble) status("bad", queue.trouble);
  else status(queue.running ? "busy" : "idle", queue.running ? "Working" : "Ready");
  showMemory(memory, experts);
  heat.update(state.layers);
  showLayers(state.layers);
}

function draw(which, value, most = null) {
  const values = lines[which];
  values.push(value);
  if (values.length > KEPT) values.shift();
  line(find(`${which}-line`), values, KEPT, most);
}

function showMemory({ process_bytes: held, budget_bytes: budget, requests_lent_bytes: lent, plan }, experts) {
  const room = Math.max(0, experts.capacity_bytes - experts.resident_bytes);
  const parts = plan === null
    ? [["experts", "Experts in memory", experts.resident_bytes], ["room", "Room for more", room]]
    : [
        ["other", "Interpreter and dense weights", plan.dense],
        ["other b", "Keys and values", plan.kv_cache + lent],
        ["other c", "Activations, buffers, libraries", plan.activations + plan.buffers + plan.libraries],
        ["experts", "Experts in memory", experts.resident_bytes],
        ["room", "Room for more", room],
        ["margin", "Free", Math.max(0, budget - plan.dense - plan.kv_cache - lent - plan.activations - plan.buffers - plan.libraries - experts.capacity_bytes)],
      ];
  const all = parts.reduce((sum, [, , nbytes]) => sum + nbytes, 0);
  find("memory-bar").replaceChildren(...parts.map(([kind, , nbytes]) => {
    const part = element("span", { class: kind });
    part.style.width = `${(100 * nbytes) / Math.max(1, all)}%`;
    return part;
  }));
  find("memory-parts").replaceChildren(...parts.map(([kind, label, nbytes]) =>
    element("div", { class: kind }, element("dt", {}, label), element("dd", {}, bytes(nbytes)))));
  const whole = `${count(experts.resident)} experts, ${percent(share(experts.resident_bytes, experts.total_bytes), 0)} of all`;
  find("memory-total").textContent = budget === null
    ? `the process holds ${bytes(held)}; ${whole}` : `the process holds ${bytes(held)} of ${bytes(budget)}; ${whole}`;
}

function showLayers(layers) {
  const body = find("layers").tBodies[0];
  const components = new Set(layers.map((one) => one.component)).size;
  if (body.rows.length !== layers.length) {
    body.replaceChildren(...layers.map((one) => {
      const place = [components > 1 ? one.component : "", one.layer, one.bank === "mlp" ? "" : one.bank].filter((part) => part !== "");
      return element("tr", {}, element("th", { scope: "row" }, place.join(" ")), ...Array.from({ length: 5 }, () => element("td")));
    }));
  }
  layers.forEach((one, y) => {
    const cells = body.rows[y].cells;
    const texts = [
      count(one.asked.reduce((a, b) => a + b, 0)),
      `${count(one.resident.length)} of ${count(one.asked.length)}`,
      percent(share(one.hits, one.requested)),
      one.decode_steps ? (one.decode_union / one.decode_steps).toFixed(2) : "–",
      one.decode_union ? (one.decode_choices / one.decode_union).toFixed(2) : "–",
    ];
    texts.forEach((text, x) => {
      if (cells[x + 1].textContent !== text) cells[x + 1].textContent = text;
    });
  });
}

function status(state, text) {
  const place = find("status");
  place.dataset.state = state;
  if (place.textContent !== text) place.textContent = text;
}

function trouble(text) {
  const place = find("trouble");
  place.hidden = text === null;
  if (text !== null && place.textContent !== text) place.textContent = text;
}

function locked() {
  status("bad", "Locked");
  find("key-button").hidden = false;
  askForKey();
}

function askForKey() {
  const dialog = find("key-dialog");
  find("key-error").textContent = key.get() === null ? "" : "This key does not open the server.";
  if (!dialog.open) dialog.showModal();
  find("key").select();
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(find("key").value.trim());
  find("key").value = "";
  tryKey();
});

async function tryKey() {
  try {
    await askJson("/coterie/model");
    find("key-dialog").close();
    look();
  } catch (error) {
    if (error.status === 401) askForKey();
    else find("key-error").textContent = error.message || "The server does not answer.";
  }
}

find("key-later").addEventListener("click", () => find("key-dialog").close());
find("key-button").addEventListener("click", () => {
  key.forget();
  known = null;
  askForKey();
});
for (const one of document.querySelectorAll("input[name=view]")) {
  one.addEventListener("change", () => heat.show(one.value));
}
document.addEventListener("visibilitychange", look);
look();
