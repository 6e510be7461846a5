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
 * candidate. A first offer has one transport a line (bundlePolicy "balanced"); the lines of a BUNDLE group that
 * an answer agrees to share the first one's (RFC 9143 §7.3), also in later offers: agreed is that answer.
 */
export function relayed(type: string, sdp: string, agreed = ""): boolean {
  const shared = group(type === "answer" ? sdp : agreed).slice(1);
  const live = lines(sdp).filter((l) => l.live && !shared.includes(l.mid));
  return live.length > 0 && live.every((l) => l.relayed);
}

function group(sdp: string): string[] {
  return /^a=group:BUNDLE (.+?)\s*$/m.exec(sdp)?.[1]?.split(" ") ?? [];
}

/** video tells whether sdp has a picture in either direction. */
export function video(sdp: string): boolean {
  return lines(sdp).some((l) => l.kind === "video" && l.live && l.direction !== "inactive");
}

/**
 * withoutVideo is an offer whose picture is given up, so that the answer to it refuses it (RFC 3264 §6). A
 * browser has no other way to say no: a transceiver that is stopped is answered as inactive (RFC 8829 §5.3.1).
 */
export function withoutVideo(sdp: string): string {
  const mids = lines(sdp).flatMap((l) => (l.kind === "video" ? [l.mid] : []));
  return sdp
    .replace(/^m=video \d+/gm, "m=video 0")
    .replace(/^a=group:BUNDLE [^\r\n]*/gm, (g) => g.split(" ").filter((mid) => !mids.includes(mid)).join(" "));
}
