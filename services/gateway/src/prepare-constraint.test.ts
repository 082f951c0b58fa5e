import { KvasirError } from "@kvasir/core";
import { expect, test } from "vitest";
import { CompletionRequest, checkRequest } from "./http/schema.ts";
import { constraintError, prepareConstraint } from "./prepare-constraint.ts";

const constraintOf = (fields: object) =>
  prepareConstraint(checkRequest(CompletionRequest, { model: "m", prompt: "p", ...fields }));

test("each name leads to the constraint that the sidecar reads", () => {
  const json = (field: string, value: string) => ({ field, kind: { case: "jsonSchema", value } });
  expect(constraintOf({})).toBeUndefined();
  expect(constraintOf({ response_format: { type: "text" }, structured_outputs: {} })).toBeUndefined();
  expect(constraintOf({ response_format: { type: "json_object" } })?.kind.case).toBe("jsonObject");
  expect(constraintOf({ structured_outputs: { json_object: true } })?.kind.case).toBe("jsonObject");
  const format = { type: "json_schema", json_schema: { name: "n", schema: { maximum: 2n ** 60n } } };
  expect(constraintOf({ response_format: format })).toEqual(
    json("response_format.json_schema.schema", '{"maximum":1152921504606847000}'),
  );
  expect(constraintOf({ guided_json: '{"b":1, "a":2}' })).toEqual(json("guided_json", '{"b":1, "a":2}'));
  expect(constraintOf({ guided_json: { b: 1, a: 2 } })).toEqual(json("guided_json", '{"b":1,"a":2}'));
  expect(constraintOf({ guided_regex: "a+" })?.kind).toEqual({ case: "regex", value: "a+" });
  expect(constraintOf({ structured_outputs: { choice: ["x", "y"] } })).toEqual({
    field: "structured_outputs.choice",
    kind: { case: "choice", value: { texts: ["x", "y"] } },
  });
});

test("two constraints are one too many", () => {
  expect(() => constraintOf({ guided_json: {}, structured_outputs: { regex: "a" } })).toThrow(
    "structured_outputs.regex is given beside guided_json",
  );
});

test("a sidecar's complaint gets the name that the client used, others stay", () => {
  const error = new KvasirError({ reason: "invalid_request", field: "constraint", message: "constraint: is no JSON" });
  const constraint = constraintOf({ guided_json: "{" });
  expect(constraintError(error, constraint)).toMatchObject({
    param: "guided_json",
    message: "guided_json: is no JSON",
  });
  expect(constraintError(error, undefined)).toBe(error);
  const other = new KvasirError({ reason: "overloaded", message: "full" });
  expect(constraintError(other, constraint)).toBe(other);
});
