// Every error of this side as one tree, the twin of sharedwidgets/errors.py: machine facts are fields, `code` is that of the wire.

export interface Facts {
  readonly code?: string;
  readonly room?: string | null;
  readonly state?: string | null;
  readonly path?: readonly string[];
  readonly expected?: string | null;
}

/** The root of the tree; an error that came over the wire is this class with the wire's `code`. */
export class SharedWidgetsError extends Error {
  static readonly code: string = "internal";
  readonly code: string;
  room: string | null;
  state: string | null;
  /** The trait, then the dict keys below it. */
  path: readonly string[];
  /** What would have been accepted. */
  readonly expected: string | null;

  constructor(message: string, facts: Facts = {}) {
    super(message);
    this.name = new.target.name;
    this.code = facts.code ?? new.target.code;
    this.room = facts.room ?? null;
    this.state = facts.state ?? null;
    this.path = facts.path ?? [];
    this.expected = facts.expected ?? null;
  }

  get trait(): string | null {
    return this.path[0] ?? null;
  }

  /** Fill in the place where it is not known yet, and return the same error; `path` leads to where its own begins. */
  located(place: { room?: string; state?: string; path?: readonly string[] }): this {
    this.room ??= place.room ?? null;
    this.state ??= place.state ?? null;
    this.path = [...(place.path ?? []), ...this.path];
    return this;
  }
}

/** A value that has no wire form, or is not of the trait's kind. */
export class InvalidValue extends SharedWidgetsError {
  static override readonly code: string = "invalid-value";
}

/** A room name that breaks the rule for tokens. */
export class InvalidToken extends SharedWidgetsError {
  static override readonly code: string = "invalid-token";
}

/** Bytes that are not a message of this protocol; `at` says where, as in `$.entries[0].seq`, once they are JSON. */
export class Malformed extends SharedWidgetsError {
  static override readonly code: string = "malformed";
  readonly at: string | null;

  constructor(message: string, at: string | null = null) {
    super(at === null ? message : `${message} - at \`${at}\``);
    this.at = at;
  }
}

/** Beyond one of the limits sent in `welcome`. */
export class TooLarge extends SharedWidgetsError {
  static override readonly code: string = "too-large";
}

/** Somebody else holds the lock of the state. */
export class Locked extends SharedWidgetsError {
  static override readonly code: string = "locked";
}

/** The room has no state of this name. */
export class NoSuchState extends SharedWidgetsError {
  static override readonly code: string = "no-such-state";
}

/** The state has no trait of this name that a page may see. */
export class NoSuchTrait extends SharedWidgetsError {
  static override readonly code: string = "no-such-trait";
}

/** A dict key on the way is missing, or what is there is not what the op needs. */
export class NoSuchPath extends SharedWidgetsError {
  static override readonly code: string = "no-such-path";
}
