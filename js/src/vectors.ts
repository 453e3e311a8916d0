// Reads tests/vectors for the tests: the cases both languages must agree on.

import { type Dict, unpack, type Value } from "./values";

const files = import.meta.glob<string>("../../tests/vectors/*.json", { query: "?raw", import: "default", eager: true });

/** One case of a file: `raw` is the JSON form, which `value` unpacks with the buffers of the case. */
export class Case {
  constructor(readonly raw: Readonly<Record<string, unknown>>) {}

  get name(): string {
    return String(this.raw.name ?? this.raw.why ?? JSON.stringify(this.raw));
  }

  has(key: string): boolean {
    return Object.hasOwn(this.raw, key);
  }

  text(key: string): string {
    return String(this.raw[key]);
  }

  number(key: string): number {
    return Number(this.raw[key]);
  }

  list(key: string): unknown[] {
    return (this.raw[key] as unknown[] | undefined) ?? [];
  }

  buffers(key = "buffers"): Uint8Array[] {
    return this.list(key).map((hex) => fromHex(String(hex)));
  }

  value(key: string): Value {
    return unpack(this.raw[key], this.buffers());
  }

  dict(key: string): Dict {
    return this.value(key) as Dict;
  }
}

export function cases(file: string, section: string): Case[] {
  const text = files[`../../tests/vectors/${file}.json`];
  if (text === undefined) throw new Error(`there is no tests/vectors/${file}.json`);
  const sections = JSON.parse(text) as Record<string, Record<string, unknown>[]>;
  return (sections[section] ?? []).map((raw) => new Case(raw));
}

export function fromHex(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (byte) => Number.parseInt(byte, 16));
}

export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The code of the error that a call raises. */
export function codeOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    return error instanceof Error && "code" in error ? String(error.code) : String(error);
  }
  return "no error";
}
