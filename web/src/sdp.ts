// What the page has to know of a session description (RFC 8866): its media lines, and whether each has a
// way through the relay yet. Pure: no DOM, no network.

/** One media line. */
export interface Line {
  kind: string;
  mid: string;
  /** Not rejected (port 0) and not to be bundled into another line only. */
  live: boolean;
  direction: string;
  /** Has a relay candidate. */
  relayed: boolean;
}

const most = 16; // lines that are looked at

/** lines are the media lines of sdp, in its order. */
export function lines(sdp: string): Line[] {
  const [session = "", ...sections] = sdp.split(/^(?=m=)/m);
  const common = direction(session) ?? "sendrecv";
  return sections.slice(0, most).map((s, i) => {
    const m = /^m=(\w+) (\d+)/.exec(s);
    return {
      kind: m?.[1] ?? "",
      mid: /^a=mid:(\S+)/m.exec(s)?.[1] ?? String(i),
      live: m?.[2] !== "0" && !/^a=bundle-only\s*$/m.test(s),
      direction: direction(s) ?? common,
      relayed: /^a=candidate:.* typ relay\b/m.test(s),
    };
  });
}

function direction(s: string): string | undefined {
  return /^a=(sendrecv|sendonly|recvonly|inactive)\s*$/m.exec(s)?.[1];
}

/**
 * relayed tells whether a description can leave: each line that has a transport of its own has a relay
 * candidate. An offer has one transport a line (bundlePolicy "balanced"); in an answer the lines of a
 * BUNDLE group share the first one's (RFC 9143 §7.3).
 */
export function relayed(type: string, sdp: string): boolean {
  const group = type === "answer" ? (/^a=group:BUNDLE (.+?)\s*$/m.exec(sdp)?.[1] ?? "").split(" ").slice(1) : [];
  const live = lines(sdp).filter((l) => l.live && !group.includes(l.mid));
  return live.length > 0 && live.every((l) => l.relayed);
}

/** video tells whether sdp has a picture in either direction. */
export function video(sdp: string): boolean {
  return lines(sdp).some((l) => l.kind === "video" && l.live && l.direction !== "inactive");
}
