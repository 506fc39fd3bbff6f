// Draws the figures the service hands out as JSON, in the colours of the page.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function themed(layout) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), tickcolor: css("--line"), automargin: true };
  const out = {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12.5, color: css("--soft") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
  };
  for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) {
    const title = { ...layout[key].title, font: { size: 12.5 } };
    out[key] = { ...axis, ...layout[key], title };
  }
  return out;
}

export async function draw(box, url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const figure = await response.json();
  const empty = !figure.data.some((trace) => trace.x.length);
  if (empty) {
    box.dataset.empty = "Nothing measured yet.";
    return;
  }
  delete box.dataset.empty;
  const options = { displayModeBar: false, responsive: true };
  const fresh = !box.classList.contains("js-plotly-plot");
  await Plotly.react(box, figure.data, themed(figure.layout), options);
  if (!fresh) return;
  box.on("plotly_click", (event) => {
    const href = event.points[0].customdata;
    if (typeof href === "string") location.href = href;
  });
}

function csv(box) {
  const rows = [["series", "x", "y"]];
  for (const trace of box.data) trace.x.forEach((x, index) => rows.push([trace.name, x, trace.y[index]]));
  const cell = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function tools(box) {
  const bar = document.querySelector(`[data-tools="${box.id}"]`);
  bar?.addEventListener("click", async (event) => {
    const kind = event.target.dataset?.save;
    if (!kind || !box.data) return;
    if (kind === "csv") return save(`${box.id}.csv`, csv(box), "text/csv");
    const image = await Plotly.toImage(box, { format: "svg", width: 1000, height: 560 });
    save(`${box.id}.svg`, decodeURIComponent(image.slice(image.indexOf(",") + 1)), "image/svg+xml");
  });
}

export function redrawAll() {
  return Promise.all([...document.querySelectorAll("[data-figure]")].map((box) => draw(box, box.dataset.figure)));
}

function axisSwitch(group) {
  const box = document.getElementById(group.dataset.axisFor);
  group.addEventListener("click", (event) => {
    const axis = event.target.dataset?.axis;
    if (!axis) return;
    for (const button of group.querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.axis === axis);
    const url = new URL(box.dataset.figure, location.href);
    url.searchParams.set("x", axis);
    box.dataset.figure = url.pathname + url.search;
    const page = new URL(location.href);
    page.searchParams.set("x", axis);
    history.replaceState(null, "", page);
    draw(box, box.dataset.figure);
  });
}

document.querySelectorAll("[data-figure]").forEach(tools);
document.querySelectorAll("[data-axis-for]").forEach(axisSwitch);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
redrawAll();
