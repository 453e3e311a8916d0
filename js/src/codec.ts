// The one door, the twin of core/codec.py: a frame becomes a typed message once, or a typed error that says where.
//
// A message without bytes values is one text frame of JSON. One with bytes values is one binary frame:
//
//   0x00 | u32 count | count × u32 length | header JSON | buffer | buffer ...     (big-endian; the header is segment 0)
//
// A frame longer than the limit travels as consecutive fragments, binary frames that begin with 0x01 (more follow) or 0x02
// (the last); their bodies joined are 0x03 | text or the binary frame. Nothing is sent between two fragments.

import { Malformed, TooLarge } from "./errors";
import { type Downstream, parseDownstream, parseUpstream, type Upstream, write } from "./protocol";
import { pack, unpack, type Value } from "./values";

export type Frame = string | Uint8Array;

const WHOLE = 0;
const MORE = 1;
const LAST = 2;
const TEXT = 3;

// Pure functions that every host has, but that the language's own library of types does not know.
declare const TextEncoder: new () => { encode(text: string): Uint8Array };
declare const TextDecoder: new (
  label: string,
  options: { fatal: boolean; ignoreBOM: boolean },
) => { decode(bytes: Uint8Array): string };

const utf8 = new TextEncoder();
const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The wire form of a message; its values are in the domain already. */
export function encode(message: Upstream | Downstream): Frame {
  const buffers: Uint8Array[] = [];
  const header = JSON.stringify(pack(write(message), buffers));
  return buffers.length === 0 ? header : join([utf8.encode(header), ...buffers]);
}

/** What a client said, or Malformed. */
export function decodeUpstream(frame: Frame): Upstream {
  return parseUpstream(open(frame));
}

/** What a server said, or Malformed. */
export function decodeDownstream(frame: Frame): Downstream {
  return parseDownstream(open(frame));
}

/** The frame itself, or the fragments it must travel in: each at most `limit` bytes. */
export function fragments(frame: Frame, limit: number): Frame[] {
  // UTF-8 has at most three bytes for a UTF-16 unit: a frame that is short enough need not be encoded to know it.
  if (frame.length * (typeof frame === "string" ? 3 : 1) <= limit) return [frame];
  const body = typeof frame === "string" ? concat([Uint8Array.of(TEXT), utf8.encode(frame)]) : frame;
  if (body.length - (typeof frame === "string" ? 1 : 0) <= limit) return [frame];
  const step = limit - 1;
  const parts: Uint8Array[] = [];
  for (let start = 0; start < body.length; start += step) {
    const mark = start + step >= body.length ? LAST : MORE;
    parts.push(concat([Uint8Array.of(mark), body.subarray(start, start + step)]));
  }
  return parts;
}

/** Puts fragments together again; at most `limit` bytes of them. */
export class Assembler {
  private parts: Uint8Array[] = [];
  private size = 0;

  constructor(private readonly limit: number) {}

  /** Whether a fragment came and the last one did not. */
  get partial(): boolean {
    return this.parts.length > 0;
  }

  /** The whole frame, or null while more fragments must come; Malformed for a frame between two, TooLarge beyond the limit. */
  feed(frame: Frame): Frame | null {
    if (typeof frame === "string" || (frame[0] !== MORE && frame[0] !== LAST)) {
      if (this.partial) throw new Malformed("a frame came between two fragments");
      return frame;
    }
    if (frame.length === 1) throw new Malformed("an empty fragment");
    this.size += frame.length - 1;
    if (this.size > this.limit) {
      const expected = `≤ ${this.limit} bytes`;
      throw new TooLarge(`a message may have ${this.limit} bytes; split it into several writes`, { expected });
    }
    this.parts.push(frame.subarray(1));
    if (frame[0] === MORE) return null;
    const body = concat(this.parts);
    this.parts = [];
    this.size = 0;
    return body[0] === TEXT ? decodeText(body.subarray(1)) : body;
  }
}

function open(frame: Frame): Value {
  const [header, buffers] = split(frame);
  let json: unknown;
  try {
    json = JSON.parse(header);
  } catch (error) {
    throw new Malformed(`not JSON: ${String(error)}`);
  }
  return unpack(json, buffers);
}

function join(segments: readonly Uint8Array[]): Uint8Array {
  const head = new Uint8Array(5 + 4 * segments.length);
  const view = new DataView(head.buffer);
  view.setUint8(0, WHOLE);
  view.setUint32(1, segments.length);
  segments.forEach((segment, index) => {
    view.setUint32(5 + 4 * index, segment.length);
  });
  return concat([head, ...segments]);
}

function split(frame: Frame): [string, Uint8Array[]] {
  if (typeof frame === "string") return [frame, []];
  if (frame[0] !== WHOLE || frame.length < 5) {
    throw new Malformed("a binary frame must begin with 0x00 and the number of its segments");
  }
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const count = view.getUint32(1);
  if (count < 1) throw new Malformed("a binary frame has at least one segment");
  let start = 5 + 4 * count;
  if (frame.length < start) throw new Malformed("a binary frame ends within its list of lengths");
  const lengths = Array.from({ length: count }, (_, index) => view.getUint32(5 + 4 * index));
  const announced = lengths.reduce((sum, length) => sum + length, start);
  if (announced !== frame.length) throw new Malformed(`a binary frame of ${frame.length} bytes announces ${announced}`);
  // Copies: a buffer must neither keep the whole frame alive nor begin where no typed array could.
  const segments = lengths.map((length) => {
    start += length;
    return frame.slice(start - length, start);
  });
  const [header, ...buffers] = segments;
  return [decodeText(header ?? frame), buffers];
}

function decodeText(bytes: Uint8Array): string {
  try {
    return strictUtf8.decode(bytes);
  } catch {
    throw new Malformed("text that is not UTF-8");
  }
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let start = 0;
  for (const part of parts) {
    whole.set(part, start);
    start += part.length;
  }
  return whole;
}
