// What if the limits were others: asks the service, which knows at once, and shows the answer beside today's best.
import { call, show } from "./api.js";

const panel = document.getElementById("whatif");
const { search, metric } = panel.dataset;
const limits = JSON.parse(panel.dataset.limits);
const names = JSON.parse(panel.dataset.names);
const SHARES = ["accuracy", "top5", "miou", "agreement"];
const STEPS = 1000;

function scaled(value, units) {
  let step = 0, size = value;
  while (Math.abs(size) >= 999.5 && step < units.length - 1) { size /= 1e3; step += 1; }
  const digits = step === 0 && Number.isInteger(size) ? String(size) : String(Number(size.toPrecision(3)));
  return `${digits} ${units[step]}`.trim();
}

function amount(name, value) {
  if (value === undefined || value === null) return "–";
  if (name.endsWith("bytes")) return scaled(value, ["B", "kB", "MB", "GB"]);
  if (name === "latency_ms") return value >= 0.1 ? `${Number(value.toPrecision(3))} ms` : `${Number((value * 1e3).toPrecision(3))} µs`;
  if (name === "energy_mj") return value >= 0.1 ? `${Number(value.toPrecision(3))} mJ` : `${Number((value * 1e3).toPrecision(3))} µJ`;
  return scaled(value, ["", "k", "M", "G", "T", "P"]);
}

function figure(name, value) {
  if (value === undefined || value === null) return "–";
  return SHARES.includes(name) ? `${(100 * value).toFixed(2)} %` : value.toFixed(4);
}

const rows = [...panel.querySelectorAll("[data-metric]")].map((box) => ({
  metric: box.dataset.metric,
  low: Number(box.dataset.low),
  high: Number(box.dataset.high),
  slider: box.querySelector("[type=range]"),
  field: box.querySelector("[name=limit]"),
  note: box.querySelector("output"),
}));

// Sliders are logarithmic: from the smallest reachable value to that of the network with 8 bits everywhere.
const place = (row, value) => Math.round((STEPS * Math.log(value / row.low)) / Math.log(row.high / row.low));
const value = (row) => row.low * (row.high / row.low) ** (Number(row.slider.value) / STEPS);

function set(row, limit, from) {
  if (from !== row.field) row.field.value = from === row.slider ? Number(limit.toPrecision(4)) : limit;
  if (from !== row.slider) row.slider.value = Math.min(STEPS, Math.max(0, place(row, limit)));
  row.note.textContent = amount(row.metric, limit);
  row.slider.setAttribute("aria-valuetext", amount(row.metric, limit));
}

const asked = () => rows.map((row) => ({ metric: row.metric, max: Number(row.field.value) }));
const quality = (item, name) => (item ? (item.metrics ?? item)[name] : null);

function cell(tag, text, numeric) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (numeric) made.className = "num";
  if (tag === "th") made.scope = numeric ? "col" : "row";
  return made;
}

function table(columns) {
  const made = document.createElement("table");
  const head = made.createTHead().insertRow();
  head.append(cell("th", "", true), ...columns.map(([title]) => cell("th", title, true)));
  const body = made.createTBody();
  const line = (title, text) => {
    const row = body.insertRow();
    row.append(cell("th", title), ...columns.map(([, item]) => cell("td", item ? text(item) : "–", true)));
  };
  for (const name of new Set([metric, "kl"])) line(names[name] ?? name, (item) => figure(name, quality(item, name)));
  for (const name of new Set([...Object.keys(limits), "bops", "weight_bytes", "latency_ms"]))
    line(names[name] ?? name, (item) => amount(name, item.costs[name]));
  line("Evidence", (item) => (item.trial_idx === undefined ? item.evidence : `${item.evidence}, trial ${item.trial_idx}`));
  return made;
}

function verdict(found) {
  const list = (metrics) => metrics.map((name) => `${names[name]} (at least ${amount(name, found.reachable[name])})`).join(", ");
  if (found.binding.length) return `✕ No network of this search's space can keep ${list(found.binding)}.`;
  if (found.measured) return `✓ Trial ${found.measured.trial_idx} was measured inside these limits.`;
  if (found.predicted) return "△ Nothing was measured inside these limits; a network that should keep them is predicted.";
  return "△ Nothing is known inside these limits yet: a search would have to find out.";
}

const box = panel.querySelector(".answer");
const running = document.querySelector("[data-events]") !== null;
let today, timer, number = 0;

async function ask() {
  const mine = (number += 1);
  const wrong = asked().some((limit) => !(limit.max > 0));
  panel.querySelector(".problem").hidden = true;
  if (wrong) return show(panel.querySelector(".problem"), new Error("A limit is a number greater than zero."));
  try {
    if (!today || running) today = await call("POST", `/v1/searches/${search}/whatif`, { limits: Object.entries(limits).map(([name, max]) => ({ metric: name, max })) });
    const found = await call("POST", `/v1/searches/${search}/whatif`, { limits: asked() });
    if (mine !== number) return;
    const near = found.measured || found.binding.length ? [] : [["closest measured", found.nearest]];
    const columns = [["best in the search's budget", today.measured ?? today.nearest], ["measured", found.measured], ["predicted", found.predicted], ...near];
    box.querySelector(".says").textContent = verdict(found);
    box.querySelector(".scroll").replaceChildren(table(columns));
    remember();
  } catch (error) {
    show(panel.querySelector(".problem"), error);
  }
}

// The limits asked about are part of the page's address, and of the address of the form for a new search.
function remember() {
  const text = asked().map((limit) => `${limit.metric}:${limit.max}`).join(",");
  const here = new URL(location.href);
  here.searchParams.set("whatif", text);
  history.replaceState(null, "", here);
  panel.querySelector("#search-here").href = `/searches/new?like=${search}&limits=${encodeURIComponent(text)}`;
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(ask, 120);
}

const given = new Map((new URL(location.href).searchParams.get("whatif") ?? "").split(",").map((part) => part.split(":")));
for (const row of rows) {
  const start = Number(given.get(row.metric));
  set(row, start > 0 ? start : limits[row.metric]);
  row.slider.addEventListener("input", () => { set(row, value(row), row.slider); soon(); });
  row.field.addEventListener("input", () => { if (Number(row.field.value) > 0) set(row, Number(row.field.value), row.field); soon(); });
}
ask();
