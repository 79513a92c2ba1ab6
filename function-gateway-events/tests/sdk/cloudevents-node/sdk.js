// Reads and writes events by the CloudEvents SDK for JavaScript: tasks come as JSON on stdin, their results go to stdout.

const { readFileSync } = require("node:fs");
const { CloudEvent, HTTP } = require("cloudevents");

const BATCH = "application/cloudevents-batch+json";

function tell(event) {
  const attributes = {};
  for (const [name, value] of Object.entries(event)) {
    if (value !== undefined && !["data", "data_base64"].includes(name)) {
      attributes[name] = String(value);
    }
  }
  let data = event.data;
  if (data === undefined) {
    data = null;
  } else if (ArrayBuffer.isView(data)) {
    data = { bytes: Buffer.from(data).toString("base64") };
  } else if (typeof data === "string" && !(event.datacontenttype ?? "").includes("json")) {
    data = { text: data };
  } else {
    data = { json: data };
  }
  return { attributes, data };
}

function make({ attributes, data }) {
  const value = data?.bytes ? Buffer.from(data.bytes, "base64") : data?.text ?? data?.json;
  return new CloudEvent({ ...attributes, data: value });
}

function read({ headers, body }) {
  const bytes = Buffer.from(body, "base64");
  const text = bytes.toString();
  // As servers hand a body over: text where it is text, and nothing where there is none.
  const content = Buffer.from(text).equals(bytes) ? text || undefined : bytes;
  return [HTTP.toEvent({ headers, body: content })].flat().map(tell);
}

function write({ mode, events }) {
  const made = events.map(make);
  // The SDK reads batches, and writes none: each event goes through its JSON.
  const batch = () => ({ headers: { "content-type": BATCH }, body: JSON.stringify(made) });
  const message = mode === "batch" ? batch() : HTTP[mode](made[0]);
  const headers = Object.fromEntries(Object.entries(message.headers).map(([name, value]) => [name, String(value)]));
  const body = ArrayBuffer.isView(message.body) ? message.body : Buffer.from(String(message.body ?? ""));
  return { headers, body: Buffer.from(body).toString("base64") };
}

function result(task) {
  try {
    return { ok: task.do === "read" ? read(task) : write(task) };
  } catch (error) {
    return { error: String(error) };
  }
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(result)));
