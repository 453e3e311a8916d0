// What a trait may hold, the twin of core/schema.py: does a value fit. Whether two classes agree is the server's to say.

import { InvalidValue } from "./errors";
import type { TraitSchema } from "./protocol";
import { isDict, isList, same, type Value } from "./values";

/** What a trait takes, in words: `int between 0 and 10 or null`. */
export function expected(schema: TraitSchema): string {
  const { kind, min, max, choices, nullable } = schema;
  let words = kind === "any" ? "any value" : kind;
  if (choices !== null) words = `one of ${choices.map(show).join(", ")}`;
  if (min !== null && max !== null) words += ` between ${min} and ${max}`;
  else if (min !== null) words += ` of at least ${min}`;
  else if (max !== null) words += ` of at most ${max}`;
  return words + (nullable && kind !== "any" ? " or null" : "");
}

/** Whether a trait of this schema may hold `value`. */
export function fits(schema: TraitSchema, value: Value): boolean {
  const { kind, min, max, choices } = schema;
  if (value === null && (schema.nullable || kind === "any")) return true;
  if (!isKind(schema, value)) return false;
  if (choices !== null && !choices.some((choice) => same(value, choice))) return false;
  if ((kind === "int" || kind === "float") && (typeof value === "number" || typeof value === "bigint")) {
    if (min !== null && !(value >= min)) return false;
    if (max !== null && !(value <= max)) return false;
  }
  return true;
}

/** InvalidValue unless the trait may hold the value. */
export function check(schema: TraitSchema, value: Value, state: string, trait: string): void {
  if (fits(schema, value)) return;
  const wanted = expected(schema);
  throw new InvalidValue(`${state}.${trait} takes ${wanted}, not ${show(value)}`, { state, path: [trait], expected: wanted });
}

function isKind(schema: TraitSchema, value: Value): boolean {
  switch (schema.kind) {
    case "any":
      return true;
    case "bool":
      return typeof value === "boolean";
    case "int":
      // A whole number beyond ±(2^53 − 1) is a float to the other side.
      return typeof value === "bigint" || Number.isSafeInteger(value);
    case "float":
      return typeof value === "number" || typeof value === "bigint";
    case "text":
      return typeof value === "string";
    case "bytes":
      return value instanceof Uint8Array;
    case "list":
      return isList(value);
    case "dict":
      return isDict(value);
  }
}

function show(value: Value): string {
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  if (isList(value)) return `a list of ${value.length}`;
  if (isDict(value)) return `a dict of ${Object.keys(value).length}`;
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`;
}
