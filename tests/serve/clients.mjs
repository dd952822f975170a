// What the openai client for JavaScript gets from a server: node clients.mjs BASE_URL MODEL. Prints one JSON object.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const asked = { model, messages, max_tokens: 6, temperature: 0 };

const found = {};
found.models = (await client.models.list()).data.map((one) => one.id);
const answer = await client.chat.completions.create(asked);
found.text = answer.choices[0].message.content;
found.record = Object.keys(answer.first_cpp).length;

let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  found.usage = chunk.usage ?? found.usage;
}
found.streamed = streamed;

const history = [...messages, answer.choices[0].message, { role: "user", content: "More" }];
found.second = (await client.chat.completions.create({ ...asked, messages: history })).object;

const tool = {
  type: "function",
  function: { name: "count", parameters: { type: "object", properties: { n: { enum: [1, 2] } }, required: ["n"], additionalProperties: false } },
};
const called = await client.chat.completions.create({ ...asked, max_tokens: 60, tools: [tool], tool_choice: "required" });
found.call = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments);

const response = await client.responses.create({ model, input: "Hello", max_output_tokens: 6, temperature: 0 });
found.response = response.output_text;
found.events = [];
for await (const event of await client.responses.create({ model, input: "Hello", max_output_tokens: 6, temperature: 0, stream: true })) {
  found.events.push(event.type);
}
const { type, function: described } = tool;
const forced = await client.responses.create({
  model, input: "Count", max_output_tokens: 60, temperature: 0, tools: [{ type, ...described, strict: true }], tool_choice: "required",
});
found.responseCall = JSON.parse(forced.output[0].arguments);

found.completion = (await client.completions.create({ model, prompt: "Once", max_tokens: 3 })).choices[0].finish_reason;
found.embedding = (await client.embeddings.create({ model, input: "one text" })).data[0].embedding.length;
try {
  await client.chat.completions.create({ ...asked, n: 2 });
} catch (error) {
  found.error = [error.status, error.param, error instanceof OpenAI.BadRequestError];
}
console.log(JSON.stringify(found));
