import { expect, test } from "vitest";
import { compileChatTemplate, placeDocuments } from "./chat-template.ts";

const PLAIN =
  "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
const user = { role: "user", content: "Who?" };

test("documents go into the system message when the template has no place for them", () => {
  const template = compileChatTemplate(PLAIN, {});
  const documents = [{ title: "Mill", text: "Old." }, { text: "New." }];
  expect(template.render([user], { documents })).toBe(
    "[system]Use these documents to answer.\n\nDocument 1: Mill\nOld.\n\nDocument 2:\nNew.[user]Who?[assistant]",
  );
  expect(placeDocuments([{ role: "system", content: "Be brief." }, user], documents)[0]?.content).toBe(
    "Be brief.\n\nDocument 1: Mill\nOld.\n\nDocument 2:\nNew.",
  );
});

test("a template that knows documents gets them", () => {
  const template = compileChatTemplate(`{% for d in documents %}<{{ d['text'] }}>{% endfor %}${PLAIN}`, {});
  expect(template.render([user], { documents: [{ text: "New." }], addGenerationPrompt: false })).toBe(
    "<New.>[user]Who?",
  );
});

test("special tokens are known by name", () => {
  expect(compileChatTemplate("{{ bos_token }}{{ messages[0]['content'] }}", { bos_token: "<s>" }).render([user])).toBe(
    "<s>Who?",
  );
});

test("what a template refuses names messages", () => {
  const template = compileChatTemplate("{{ raise_exception('roles must alternate') }}", {});
  expect(() => template.render([user])).toThrow(
    expect.objectContaining({
      reason: "invalid_request",
      field: "messages",
      message: expect.stringContaining("roles must alternate"),
    }),
  );
});

test("a broken template is told as such", () => {
  expect(() => compileChatTemplate("{% for %}", {})).toThrow(expect.objectContaining({ field: "model" }));
});
