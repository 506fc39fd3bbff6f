// The search page: events tell when to look again; fragments and charts are fetched afresh, about once a second.
import { redrawAll } from "./charts.js";

const regions = [...document.querySelectorAll("[data-live]")];
const head = document.querySelector("[data-events]");
let busy = false, again = false, source, timer;

async function fresh(region) {
  const response = await fetch(region.dataset.live);
  if (!response.ok) return;
  const text = await response.text();
  if (text !== region.lastText) region.innerHTML = text;
  region.lastText = text;
}

async function look() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    await Promise.all([...regions.map(fresh), redrawAll()]);
  } finally {
    setTimeout(() => { busy = false; if (again) { again = false; look(); } }, 900);
  }
  if (!head.querySelector("[data-finished]")) return;
  source.close();
  clearInterval(timer);
  location.reload();
}

source = new EventSource(head.dataset.events);
source.onmessage = look;
for (const name of head.dataset.names.split(" ")) if (name) source.addEventListener(name, look);
timer = setInterval(look, 4000);
