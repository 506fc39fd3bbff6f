// Methods of a search, in order: rows of the new-search form on one side, `methods` of a request on the other.
// Parameters are written as on the command line: epochs=20, rate=3e-3.

// A number or a truth value; what is neither stays a text, which the service refuses by name.
function value(text) {
  try { return JSON.parse(text); } catch { return text; }
}

const field = (row, name) => row.querySelector(`[name=${name}]`);

export class Methods {
  // `training` names the parameters that all methods share that train.
  constructor(box, template, training, changed) {
    Object.assign(this, { box, template, training, changed });
  }

  add(name = "", parameters = "") {
    const row = this.template.content.firstElementChild.cloneNode(true);
    if (name) field(row, "method").value = name;
    field(row, "parameters").value = parameters;
    const fit = () => {
      const { title, dataset } = field(row, "method").selectedOptions[0];
      field(row, "method").title = title;
      field(row, "parameters").placeholder = dataset.trains === "1" ? "epochs=5, rows=15000" : "as they are";
    };
    field(row, "method").addEventListener("input", fit);
    row.querySelector("button").addEventListener("click", () => { row.remove(); this.changed(); });
    fit();
    this.box.append(row);
  }

  fill(list) {
    for (const { name, training = {}, ...own } of list)
      this.add(name, Object.entries({ ...training, ...own }).filter(([, given]) => given !== null).map(([key, given]) => `${key}=${given}`).join(", "));
  }

  get list() {
    return [...this.box.children].map((row) => {
      const made = { name: field(row, "method").value };
      for (const part of field(row, "parameters").value.split(",").map((text) => text.trim()).filter(Boolean)) {
        const at = part.indexOf("=");
        const key = at < 0 ? part : part.slice(0, at).trim();
        const trains = this.training.includes(key) && field(row, "method").selectedOptions[0].dataset.trains === "1";
        const place = trains ? (made.training ??= {}) : made;
        place[key] = at < 0 ? null : value(part.slice(at + 1).trim());
      }
      return made;
    });
  }
}
