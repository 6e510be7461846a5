// How long something lasts. A life is counted from when it was given, by two clocks of which the one that
// is further on holds: the steady one stands still while a computer sleeps, the wall's may be set back.
// Neither has to be right. Pure, but for now().

/** Two readings of one instant, ms. */
export interface Instant {
  steady: number;
  wall: number;
}

export function now(): Instant {
  return { steady: performance.now(), wall: Date.now() };
}

export class Life {
  /** whole is its length, ms. */
  constructor(
    readonly whole: number,
    private readonly begun: Instant,
  ) {}

  /** left is what remains, ms; 0 once it is over. */
  left(at = now()): number {
    return Math.max(0, this.whole - Math.max(at.steady - this.begun.steady, at.wall - this.begun.wall, 0));
  }

  /** due is how long to wait before it is to be renewed: a minute before its end, or a quarter of a short one. */
  due(at = now()): number {
    return Math.max(0, this.left(at) - Math.min(60_000, this.whole / 4));
  }

  /** end by this computer's clock, ms of Date.now(). */
  end(at = now()): number {
    return at.wall + this.left(at);
  }
}
