// Whether this computer's clock is right: held against the Date (RFC 9110 §6.6.1) of the portal's and the
// WAF's answers. The page itself needs no right clock; certificates do. Pure, but for what was measured last.

/** Offsets below this are nobody's trouble, ms. */
export const tolerance = 5 * 60_000;

/** What the servers' clock is ahead of this computer's, ms, as far as measured. */
export const measured = { offset: 0 };

/** offset reads a Date header that came between two instants of Date.now(); undefined where it tells nothing. */
export function offset(date: string | null | undefined, asked: number, answered: number): number | undefined {
  const there = Date.parse(date ?? "");
  // Date has whole seconds, cut off: half a second on the average.
  return Number.isNaN(there) ? undefined : Math.round(there + 500 - (asked + answered) / 2);
}

/** measure notes what an answer says of the time. Where a page may not read Date (CORS), nothing is noted. */
export function measure(response: Response, asked: number): void {
  const o = offset(response.headers.get("Date"), asked, Date.now());
  if (o !== undefined) measured.offset = o;
}

/** words name a wrong clock; "" while it is right enough. */
export function words(ahead = measured.offset): string {
  const off = Math.abs(ahead);
  if (off < tolerance) return "";
  const span =
    off < 2 * 3_600_000 ? `${Math.round(off / 60_000)} minutes` : off < 2 * 86_400_000 ? `${Math.round(off / 3_600_000)} hours` : `${Math.round(off / 86_400_000)} days`;
  return `This computer’s clock is ${span} ${ahead > 0 ? "slow" : "fast"}. Set it right: with a wrong clock, certificates and log-ins can be refused.`;
}
