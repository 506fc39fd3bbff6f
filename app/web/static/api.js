// The few calls that pages make to /v1. The session cookie goes along; every POST carries an idempotency key.

export class Problem extends Error {
  constructor(body, status) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.body = body;
    this.status = status;
  }

  // The refusal as text: what it says, then the fields at fault and the figures that come along.
  get text() {
    const { detail, title, type, status, instance, errors = [], slug, ...rest } = this.body;
    const lines = [this.message];
    for (const error of errors) lines.push(`${error.pointer || error.field || ""}: ${error.detail || error.msg || ""}`);
    for (const [key, value] of Object.entries(rest)) lines.push(`${key}: ${JSON.stringify(value)}`);
    return lines.join("\n");
  }
}

export async function call(method, path, body) {
  const headers = { "Idempotency-Key": crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) };
  if (method === "DELETE") headers["If-Match"] = "*";
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await response.text();
  let data = {};
  try { data = text ? JSON.parse(text) : {}; } catch { data = { detail: text.slice(0, 300) }; }
  if (!response.ok) throw new Problem(data, response.status);
  return data;
}

export function show(box, error) {
  if (!box) return;
  box.textContent = error instanceof Problem ? error.text : String(error.message || error);
  box.hidden = false;
}
