// The official OpenAI SDK for Node against a relay with real engines behind it. Fails where the SDK does not see what it should.
//
// Usage: suite.mjs RELAY_URL CHAT_MODEL TOOL_MODEL EMBEDDING_MODEL, with the API key in ZORAI_AI_API_KEY. Its chat model has one slot. Prints the names of
// the checks that held.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [relay, model, caller, embedder] = process.argv.slice(2);
const settings = { baseURL: `${relay}/v1`, apiKey: process.env.ZORAI_AI_API_KEY, maxRetries: 0, timeout: 60_000 };
const client = new OpenAI(settings);
const messages = [{ role: "user", content: "hello" }];
const tool = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather in a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Oslo"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

async function raised(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.equal(error.constructor, kind, `${error.constructor.name}: ${error.message}`);
    return error;
  }
  throw new Error(`no ${kind.name} was raised`);
}

async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const first = async (stream) => (await stream[Symbol.asyncIterator]().next()).value;

// llama.cpp's server does not notice that the client of an answer that is not streamed has left: it works on to its end.
const waitForTheSlot = () => client.chat.completions.create({ model, messages, max_tokens: 1 });

const checks = {
  async models() {
    const ids = (await all(await client.models.list())).map((entry) => entry.id);
    assert.deepEqual(ids.sort(), [model, caller, embedder].sort());
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async chat() {
    const { data, response } = await client.chat.completions
      .create({ model, messages, max_tokens: 16, seed: 1 })
      .withResponse();
    assert.ok(data.choices[0].message.content);
    assert.equal(data.choices[0].finish_reason, "length");
    assert.equal(data.usage.completion_tokens, 16);
    assert.equal(response.headers.get("x-zorai-attempts"), "1");
    const cost = Number(response.headers.get("x-zorai-cost"));
    assert.equal(cost, data.usage.prompt_tokens + 2 * data.usage.completion_tokens);
  },

  async streamingWithUsage() {
    const stream = await client.chat.completions.create({
      model,
      messages,
      max_tokens: 16,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = await all(stream);
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    assert.ok(text);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.completion_tokens, 16);
  },

  async completions() {
    const answer = await client.completions.create({ model, prompt: "the relay", max_tokens: 8 });
    assert.ok(answer.choices[0].text);
  },

  async toolsRoundTrip() {
    // The model has learnt nothing: that it calls is llama.cpp's doing, by a grammar of calls that chance leads most seeds into.
    let asked;
    for (let seed = 1; seed < 20 && asked?.choices[0].finish_reason !== "tool_calls"; seed += 1) {
      asked = await client.chat.completions.create({
        model: caller,
        messages,
        tools: [tool],
        tool_choice: "required",
        max_tokens: 400,
        seed,
      });
    }
    assert.equal(asked.choices[0].finish_reason, "tool_calls");
    const calls = asked.choices[0].message.tool_calls;
    for (const call of calls) {
      assert.equal(call.function.name, "weather");
      assert.deepEqual(JSON.parse(call.function.arguments), { city: "Oslo" });
    }
    const told = calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "rain" }));
    const turns = [...messages, asked.choices[0].message, ...told];
    const answer = await client.chat.completions.create({ model, messages: turns, max_tokens: 8 });
    assert.ok(answer.choices[0].message.content);
  },

  async embeddings() {
    const answer = await client.embeddings.create({ model: embedder, input: ["the task", "a market"] });
    assert.deepEqual(answer.data.map((entry) => entry.index), [0, 1]);
    assert.ok(answer.data[0].embedding.length > 0);
    assert.equal(answer.data[0].embedding.length, answer.data[1].embedding.length);
  },

  async responses() {
    const answer = await client.responses.create({ model, input: "hello", max_output_tokens: 16 });
    assert.ok(answer.output_text);
    const events = await all(
      await client.responses.create({ model, input: "hello", max_output_tokens: 16, stream: true }),
    );
    assert.equal(events[0].type, "response.created");
    assert.equal(events.at(-1).type, "response.completed");
  },

  async errorsAreTyped() {
    const ask = (more, options) => () => client.chat.completions.create({ model, messages, ...more }, options);
    const unknown = await raised(OpenAI.NotFoundError, ask({ model: `${model}x` }));
    assert.equal(unknown.code, "model_not_found");
    assert.ok(unknown.requestID);
    const wrong = new OpenAI({ ...settings, apiKey: "wrong" });
    assert.equal((await raised(OpenAI.AuthenticationError, () => wrong.models.list())).code, "invalid_api_key");
    const malformed = await raised(OpenAI.BadRequestError, ask({ stream: "yes" }));
    assert.deepEqual([malformed.code, malformed.param], ["malformed_request", "stream"]);
    const headers = { "x-zorai-timeout-ms": "100" };
    const late = await raised(OpenAI.InternalServerError, ask({ max_tokens: 2000 }, { headers }));
    assert.deepEqual([late.status, late.code], [504, "deadline_exceeded"]);
  },

  async errorsWithinStreamsAreRaised() {
    await waitForTheSlot();
    const headers = { "x-zorai-timeout-ms": "500" };
    const stream = await client.chat.completions.create(
      { model, messages, max_tokens: 7000, stream: true },
      { headers },
    );
    assert.equal((await raised(OpenAI.APIError, () => all(stream))).code, "deadline_exceeded");
  },

  async cancellation() {
    const stream = await client.chat.completions.create({ model, messages, max_tokens: 7000, stream: true });
    await first(stream);
    stream.controller.abort();
    const begun = performance.now();
    await waitForTheSlot();
    assert.ok(performance.now() - begun < 5000);
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 100);
    const { signal } = controller;
    await raised(OpenAI.APIUserAbortError, () =>
      client.chat.completions.create({ model, messages, max_tokens: 2000 }, { signal }),
    );
  },

  async timeouts() {
    await raised(OpenAI.APIConnectionTimeoutError, () =>
      client.chat.completions.create({ model, messages, max_tokens: 2000 }, { timeout: 100 }),
    );
  },

  async retries() {
    await waitForTheSlot();
    let asked = 0;
    const patient = new OpenAI({
      ...settings,
      maxRetries: 2,
      fetch: (...args) => {
        asked += 1;
        return fetch(...args);
      },
    });
    const busy = await client.chat.completions.create({ model, messages, max_tokens: 7000, stream: true });
    await first(busy);
    setTimeout(() => busy.controller.abort(), 1000);
    const headers = { "x-queue-timeout": "0" };
    const answer = await patient.chat.completions.create({ model, messages, max_tokens: 1 }, { headers });
    assert.ok(answer.choices.length);
    assert.equal(asked, 2);
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
  } catch (error) {
    console.error(`${name}:`, error);
    process.exit(1);
  }
  console.log(name);
}
