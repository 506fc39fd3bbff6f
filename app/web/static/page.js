// On every page: buttons that call the API, uploads, and pages that refresh while something is under way.
import { call, show, Problem } from "./api.js";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-call]");
  if (!button || (button.dataset.confirm && !confirm(button.dataset.confirm))) return;
  const method = button.dataset.method || "POST";
  button.disabled = true;
  try {
    await call(method, button.dataset.call, method === "DELETE" ? undefined : {});
    location.reload();
  } catch (error) {
    button.disabled = false;
    show(document.getElementById("problem"), error);
  }
});

// A small form that steers something: its numbers go to the API as JSON.
async function steer(form) {
  const body = {};
  for (const [name, value] of new FormData(form)) body[name] = Number(value);
  try {
    await call("POST", form.dataset.steer, body);
    location.reload();
  } catch (error) {
    show(document.getElementById("problem"), error);
  }
}
document.addEventListener("submit", (event) => {
  if (!event.target.dataset.steer) return;
  event.preventDefault();
  steer(event.target);
});
document.addEventListener("change", (event) => {
  if ("submit" in event.target.dataset) steer(event.target.form);
});

function upload(zone, file) {
  const bar = zone.querySelector("progress");
  const box = zone.querySelector(".problem");
  const request = new XMLHttpRequest();
  const opens = "open" in zone.dataset; // new weights keep their model's name and lead to a page of their own
  const name = encodeURIComponent(file.name.replace(/\.[^.]+$/, ""));
  request.open("POST", opens ? zone.dataset.upload : `${zone.dataset.upload}?name=${name}`);
  request.setRequestHeader("Idempotency-Key", crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2));
  request.setRequestHeader("Content-Type", "application/octet-stream");
  const spec = zone.querySelector("[name=spec]");
  if (spec && spec.value.trim()) request.setRequestHeader("X-Tightfit-Dataset-Spec", spec.value.trim().replaceAll("\n", " "));
  request.upload.addEventListener("progress", (event) => {
    bar.hidden = false;
    bar.max = event.total;
    bar.value = event.loaded;
  });
  request.addEventListener("load", () => {
    if (request.status < 300 && opens) return location.assign(request.getResponseHeader("Location").replace("/v1", ""));
    if (request.status < 300) return location.reload();
    bar.hidden = true;
    let body = {};
    try { body = JSON.parse(request.responseText); } catch { body = { detail: request.statusText }; }
    show(box, new Problem(body, request.status));
  });
  request.addEventListener("error", () => show(box, new Error("The upload broke off.")));
  request.send(file);
}

for (const zone of document.querySelectorAll("[data-upload]")) {
  const input = zone.querySelector("input[type=file]");
  input.addEventListener("change", () => input.files[0] && upload(zone, input.files[0]));
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.dataset.over = ""; });
  zone.addEventListener("dragleave", () => delete zone.dataset.over);
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    delete zone.dataset.over;
    if (event.dataTransfer.files[0]) upload(zone, event.dataTransfer.files[0]);
  });
}

// A region that is still changing names the address of its fresh HTML; it is fetched until it stops asking.
async function refresh(region) {
  const response = await fetch(region.dataset.refresh);
  if (!response.ok) return;
  const holder = document.createElement("div");
  holder.innerHTML = await response.text();
  const next = holder.firstElementChild;
  region.replaceWith(next);
  if (next.dataset.refresh) later(next);
}
// A page that waits for something outside its regions is loaded again after a while.
const waiting = document.querySelector("[data-reload]");
if (waiting) setTimeout(() => location.reload(), Number(waiting.dataset.reload));

const later = (region) => setTimeout(() => refresh(region).catch(() => later(region)), 1500);
document.querySelectorAll("[data-refresh]").forEach(later);

const dot = document.querySelector(".live");
async function beat() {
  try {
    const response = await fetch("/readyz", { cache: "no-store" });
    dot.dataset.state = response.ok ? "on" : "off";
    dot.textContent = response.ok ? "service is up" : "not ready";
  } catch {
    dot.dataset.state = "off";
    dot.textContent = "no connection";
  }
}
if (dot) { beat(); setInterval(beat, 15000); }
