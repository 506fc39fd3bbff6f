// Rules for layers and channel groups by name pattern: rows of the new-search form on one side, `space` of a request on
// the other.
const numbers = (text) => text.split(/[\s,]+/).filter(Boolean).map(Number);
const only = (list) => list.join(" ");

// What a row of each kind says, how its value is read into a space, and how a space's entries become rows.
const KINDS = {
  freeze: { hint: "", put: (space, name) => (space.freeze ??= []).push(name), list: ({ freeze = [] }) => freeze.map((name) => [name, ""]) },
  min_keeps: { hint: "0.5", put: (space, name, text) => { (space.min_keeps ??= {})[name] = Number(text); }, list: ({ min_keeps = {} }) => Object.entries(min_keeps) },
  max_keeps: { hint: "0.75", put: (space, name, text) => { (space.max_keeps ??= {})[name] = Number(text); }, list: ({ max_keeps = {} }) => Object.entries(max_keeps) },
  fixed_bits: {
    hint: "8 8",
    put: (space, name, text) => { (space.fixed_bits ??= {})[name] = numbers(text); },
    list: ({ fixed_bits = {} }) => Object.entries(fixed_bits).map(([name, pair]) => [name, only(pair)]),
  },
  weight: widths("weight"),
  activation: widths("activation"),
};

function widths(part) {
  return {
    hint: "4 8",
    put: (space, name, text) => { ((space.bits ??= {})[name] ??= {})[part] = numbers(text); },
    list: ({ bits = {} }) => Object.entries(bits).filter(([, rule]) => rule[part]).map(([name, rule]) => [name, only(rule[part])]),
  };
}

const field = (row, name) => row.querySelector(`[name=${name}]`);

export class Rules {
  constructor(box, template, changed) {
    Object.assign(this, { box, template, changed });
  }

  add(kind = "freeze", pattern = "", value = "") {
    const row = this.template.content.firstElementChild.cloneNode(true);
    field(row, "rule").value = kind;
    field(row, "pattern").value = pattern;
    field(row, "allowed").value = value;
    const fit = () => {
      const { hint } = KINDS[field(row, "rule").value];
      field(row, "allowed").placeholder = hint;
      field(row, "allowed").disabled = !hint;
    };
    field(row, "rule").addEventListener("input", fit);
    row.querySelector("button").addEventListener("click", () => { row.remove(); this.changed(); });
    fit();
    this.box.append(row);
  }

  fill(space) {
    for (const [kind, { list }] of Object.entries(KINDS))
      for (const [pattern, value] of list(space)) this.add(kind, pattern, value);
  }

  // The part of a space that the rows say; rows without a pattern say nothing.
  get space() {
    const made = {};
    for (const row of this.box.children) {
      const pattern = field(row, "pattern").value.trim();
      if (pattern) KINDS[field(row, "rule").value].put(made, pattern, field(row, "allowed").value);
    }
    return made;
  }
}

export const RULED = ["freeze", "min_keeps", "max_keeps", "fixed_bits", "bits"];
