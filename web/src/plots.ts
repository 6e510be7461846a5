// The last minute of a call as small curves: bitrate, loss and round trip, one point a second. Pure: no DOM.

import type { Path } from "./path.ts";

/** One curve, with words for who does not see it. */
export interface Plot {
  name: "bitrate" | "loss" | "round-trip";
  /** Newest value as a person reads it. */
  value: string;
  /** The same in a sentence, with the minute's span. */
  spoken: string;
  /** Path data of the curve in a box of width × height; "" until there are two points. */
  line: string;
  /** The curve closed along the bottom. */
  area: string;
}

export const width = 120; // of a plot's box, in its own units: two a second
export const height = 32;
const seconds = 60;

interface Point {
  at: number; // ms, steady
  bitrate: number; // kbit/s, both directions
  loss: number | undefined; // of what came in, 0 to 1; undefined where nothing came
  trip: number | undefined; // s
}

/** History collects the points of one call. */
export class History {
  private points: Point[] = [];
  private last: { at: number; p: Path } | undefined;

  /** add takes the counters of an instant, ms of a steady clock. */
  add(p: Path, at: number): void {
    const before = this.last;
    if (before && at - before.at < 200) return; // too near to be divided by
    this.last = { at, p };
    if (!before) return;
    const bytes = Math.max(0, p.bytesIn + p.bytesOut - before.p.bytesIn - before.p.bytesOut);
    const lost = Math.max(0, p.packetsLost - before.p.packetsLost);
    const came = Math.max(0, p.packetsIn - before.p.packetsIn);
    this.points.push({ at, bitrate: (bytes * 8) / (at - before.at), loss: came + lost > 0 ? lost / (came + lost) : undefined, trip: p.roundTrip });
    this.points = this.points.filter((x) => at - x.at <= seconds * 1000);
  }

  /** plots draws what there is. */
  plots(): [Plot, Plot, Plot] {
    return [
      this.plot("bitrate", (p) => p.bitrate, 64, rate, "Bitrate, both ways"),
      this.plot("loss", (p) => p.loss, 0.05, percent, "Packets lost"),
      this.plot("round-trip", (p) => p.trip, 0.1, milliseconds, "Round trip to the gateway"),
    ];
  }

  // least is the value at the top of the box, unless the curve goes higher: noise stays low.
  private plot(name: Plot["name"], of: (p: Point) => number | undefined, least: number, write: (v: number) => string, title: string): Plot {
    const now = this.points.at(-1)?.at ?? 0;
    const known = this.points.flatMap((p) => {
      const v = of(p);
      return v === undefined ? [] : [{ at: p.at, v }];
    });
    const newest = known.at(-1);
    if (!newest) return { name, value: "–", spoken: `${title}: not known yet`, line: "", area: "" };
    const top = known.reduce((m, p) => Math.max(m, p.v), least);
    const low = known.reduce((m, p) => Math.min(m, p.v), Infinity);
    const high = known.reduce((m, p) => Math.max(m, p.v), 0);
    const x = (at: number) => round(width - ((now - at) / 1000) * (width / seconds));
    const y = (v: number) => round(height - 1 - (v / top) * (height - 3));
    const line = known.length < 2 ? "" : "M" + known.map((p) => `${x(p.at)} ${y(p.v)}`).join("L");
    return {
      name,
      value: write(newest.v),
      spoken: `${title}: ${write(newest.v)}, in the last minute between ${write(low)} and ${write(high)}`,
      line,
      area: line && `${line}V${height}H${x(known[0]!.at)}Z`,
    };
  }
}

function round(v: number): number {
  return Math.round(v * 10) / 10;
}

export function rate(kbit: number): string {
  return kbit < 1000 ? `${Math.round(kbit)} kbit/s` : `${(kbit / 1000).toFixed(1)} Mbit/s`;
}

export function percent(share: number): string {
  return share === 0 ? "0 %" : share < 0.1 ? `${(share * 100).toFixed(1)} %` : `${Math.round(share * 100)} %`;
}

export function milliseconds(s: number): string {
  return s < 0.0095 ? `${(s * 1000).toFixed(1)} ms` : `${Math.round(s * 1000)} ms`;
}
