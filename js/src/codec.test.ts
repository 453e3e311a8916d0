import { describe, expect, test } from "vitest";
import { Assembler, decodeDownstream, decodeUpstream, encode, fragments } from "./codec";
import { Malformed } from "./errors";
import { cases, codeOf, fromHex, toHex } from "./vectors";

const decoders = { upstream: decodeUpstream, downstream: decodeDownstream };

function decoder(union: unknown) {
  return union === "upstream" ? decodeUpstream : decodeDownstream;
}

describe.each(["upstream", "downstream"] as const)("%s", (union) => {
  test.each(cases("messages", union))("$name", (given) => {
    const message = decoders[union](JSON.stringify(given.raw.wire));
    expect(encode(message)).toBe(JSON.stringify(given.raw.canonical ?? given.raw.wire));
  });
});

test.each(cases("messages", "malformed"))("malformed: $name", (given) => {
  const frame = given.has("text") ? given.text("text") : JSON.stringify(given.raw.wire);
  let raised: unknown;
  try {
    decoder(given.raw.union)(frame);
  } catch (error) {
    raised = error;
  }
  expect(raised).toBeInstanceOf(Malformed);
  expect(raised).toMatchObject({ code: "malformed", at: given.raw.at });
});

describe("binary frames", () => {
  test.each(cases("frames", "binary"))("$name", (given) => {
    const frame = fromHex(given.text("frame"));
    const message = decoder(given.raw.union)(frame);
    const encoded = encode(message);
    expect(encoded instanceof Uint8Array && toHex(encoded)).toBe(given.raw.frame);
    // A frame may lie anywhere in a larger buffer.
    const larger = new Uint8Array(frame.length + 7);
    larger.set(frame, 3);
    expect(decoder(given.raw.union)(larger.subarray(3, 3 + frame.length))).toEqual(message);
  });

  test.each(cases("frames", "readable"))("$name", (given) => {
    expect(encode(decodeDownstream(fromHex(given.text("frame"))))).toBe(given.raw.canonical);
  });

  test.each(cases("frames", "malformed"))("malformed: $name", (given) => {
    expect(() => decodeDownstream(fromHex(given.text("frame")))).toThrow(Malformed);
  });
});

describe("fragments", () => {
  test.each(cases("frames", "fragments"))("$name", (given) => {
    const frame = given.has("text") ? given.text("text") : fromHex(given.text("hex"));
    const parts = fragments(frame, given.number("limit"));
    if (given.raw.fragments === null) expect(parts).toEqual([frame]);
    else expect(parts.map((part) => part instanceof Uint8Array && toHex(part))).toEqual(given.raw.fragments);
    const assembler = new Assembler(1000);
    expect(parts.map((part) => assembler.feed(part))).toEqual([...parts.slice(1).map(() => null), frame]);
    expect(assembler.partial).toBe(false);
  });

  test.each(cases("frames", "assembled"))("$name", (given) => {
    const assembler = new Assembler(given.number("limit"));
    const parts = given.buffers("feed");
    for (const part of parts.slice(0, -1)) {
      expect(assembler.feed(part)).toBeNull();
      expect(assembler.partial).toBe(true);
    }
    const last = parts.at(-1) ?? new Uint8Array();
    if (given.has("error")) expect(codeOf(() => assembler.feed(last))).toBe(given.raw.error);
    else expect(assembler.feed(last)).toBe(given.raw.text);
  });
});
