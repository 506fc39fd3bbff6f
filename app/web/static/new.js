// The new-search form: builds the body of POST /v1/searches, shows it as curl, and sends it.
import { call, show } from "./api.js";
import { Methods } from "./methods.js";
import { RULED, Rules } from "./rules.js";

const form = document.getElementById("new-search");
const limits = form.querySelector(".limits");
const template = document.getElementById("limit-row");

const like = JSON.parse(form.dataset.request);
const rules = new Rules(form.querySelector(".rules"), document.getElementById("rule-row"), () => write());
const methods = new Methods(form.querySelector(".methods"), document.getElementById("method-row"), form.dataset.training.split(" "), () => write());

function addLimit(metric, kind, value, asked) {
  const row = template.content.firstElementChild.cloneNode(true);
  if (metric) row.querySelector("[name=metric]").value = metric;
  if (kind) row.querySelector("[name=kind]").value = kind;
  if (value) row.querySelector("[name=value]").value = value;
  row.asked = asked; // evidence and statistic of a measured limit
  row.querySelector("button").addEventListener("click", () => { row.remove(); write(); });
  limits.append(row);
}

// 1/16, 0.0625 and plain numbers.
function number(text) {
  const [top, bottom] = text.split("/").map(Number);
  return bottom === undefined ? top : top / bottom;
}

function space(value) {
  const made = { ...like.space, prune: form.elements.prune.checked, min_keep: Number(value("min_keep")) };
  for (const name of [...RULED, "first_last"]) delete made[name];
  if (value("first_last")) made.first_last = Number(value("first_last"));
  return { ...made, ...rules.space };
}

// Layers and channel groups of the chosen model, offered where a pattern is typed.
async function offerNames() {
  const id = form.elements.model.value;
  const model = id ? await call("GET", `/v1/models/${id}`) : {};
  const names = [...(model.graph?.layers ?? []).map((layer) => layer.name), ...(model.graph?.groups ?? []).map((group) => group.id)];
  document.getElementById("names").replaceChildren(...names.map((name) => new Option(name, name)));
}

function dataset(chosen) {
  if (chosen === "none") return null;
  return chosen === "roles" ? like.dataset : { all: chosen };
}

function body() {
  const value = (name) => form.elements[name]?.value ?? "";
  const made = {
    ...like, // what the form has no fields for stays as the other search asked for it
    name: value("name") || "search",
    model_id: value("model"),
    dataset: dataset(value("data")),
    device_id: value("device"),
    export_top: Number(value("export_top")),
    limits: [],
    space: space(value),
    search: { ...like.search, trials: Number(value("trials")), seed: Number(value("seed")), runners: Number(value("runners")), sampler: value("sampler"), goal: value("goal") },
  };
  if (made.search.goal === "best") delete made.search.axes; // else those of the other search, or kl and the first limit's cost
  if (value("metric")) made.metric = value("metric");
  else delete made.metric;
  if (value("opset")) made.export = { ...like.export, opset: Number(value("opset")) };
  else delete made.export;
  if (methods.list.length) made.methods = methods.list;
  else delete made.methods;
  for (const row of limits.children) {
    const text = row.querySelector("[name=value]").value.trim();
    if (!text) continue;
    const kind = row.querySelector("[name=kind]").value;
    const limit = { ...row.asked, metric: row.querySelector("[name=metric]").value };
    if (kind === "max") limit.max = number(text);
    else { limit.relative = number(text); limit.relative_to = kind; }
    made.limits.push(limit);
  }
  return made;
}

function write() {
  const text = JSON.stringify(body(), null, 2);
  document.getElementById("curl").textContent =
    `curl -X POST ${location.origin}/v1/searches \\\n  -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\\n  -H "Idempotency-Key: $(uuidgen)" -d '${text}'`;
}

form.addEventListener("input", write);
document.getElementById("add-limit").addEventListener("click", () => { addLimit(); write(); });
document.getElementById("add-rule").addEventListener("click", () => { rules.add(); write(); });
document.getElementById("add-method").addEventListener("click", () => { methods.add(); write(); });
form.elements.model.addEventListener("change", () => offerNames().catch(() => {}));
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const box = document.getElementById("problem");
  box.hidden = true;
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  try {
    const search = await call("POST", "/v1/searches", body());
    location.href = `/searches/${search.id}`;
  } catch (error) {
    button.disabled = false;
    show(box, error);
    box.scrollIntoView({ block: "nearest" });
  }
});
for (const { metric, max, relative, relative_to, ...asked } of JSON.parse(form.dataset.limits))
  addLimit(metric, relative ? relative_to || "w8a8" : "max", String(relative ?? max), asked);
rules.fill(like.space ?? {});
methods.fill(like.methods ?? []);
offerNames().catch(() => {}); // without them patterns are typed
if (!limits.children.length) {
  addLimit("bops", "w8a8", "1/16");
  addLimit("weight_bytes", "max", "");
  addLimit("latency_ms", "max", "");
}
write();
