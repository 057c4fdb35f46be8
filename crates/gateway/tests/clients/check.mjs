// OpenAI's JavaScript client, unmodified, against a running gateway: node check.mjs BASE_URL MODEL
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "secret", maxRetries: 0 });
const messages = [{ role: "user", content: "Name three colours." }];
const chat = (more) => client.chat.completions.create({ model, messages, max_tokens: 24, temperature: 0, ...more });
const refused = async (more) => {
  try {
    await chat(more);
  } catch (e) {
    assert.ok(e instanceof OpenAI.APIError, String(e));
    return e;
  }
  throw new Error(`${JSON.stringify(more)} was not refused`);
};

const listed = [];
for await (const m of client.models.list()) listed.push(m.id);
assert.ok(listed.includes(model));

const whole = await chat();
const text = whole.choices[0].message.content;
assert.ok(text && whole.usage.completion_tokens <= 24);
assert.match(whole.sworn.receipts[0].receiptDigest, /^0x[0-9a-f]{64}$/);

let streamed = "";
let usage;
for await (const piece of await chat({ stream: true, stream_options: { include_usage: true } })) {
  streamed += piece.choices[0]?.delta?.content ?? "";
  usage = piece.usage ?? usage;
}
assert.equal(streamed, text);
assert.deepEqual(usage, whole.usage);

const stop = text.slice(4, 9);
const stopped = await chat({ stop: [stop] });
assert.equal(stopped.choices[0].message.content, text.slice(0, text.indexOf(stop)));
assert.equal(stopped.choices[0].finish_reason, "stop");

const sampled = async (seed) => (await chat({ temperature: 1, seed })).choices[0].message.content;
assert.equal(await sampled(7), await sampled(7));

const helper = client.chat.completions.stream({ model, messages, max_tokens: 24, temperature: 0 });
assert.equal(await helper.finalContent(), text);

assert.equal((await refused({ model: "nobody" })).code, "model_not_found");
assert.equal((await refused({ temperature: 3 })).param, "temperature");
assert.equal((await refused({ response_format: { type: "json_object" } })).param, "response_format");
const wrong = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
await assert.rejects(() => wrong.models.list(), OpenAI.AuthenticationError);
console.log("javascript client ok");
