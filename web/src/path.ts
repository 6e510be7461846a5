// The way of a call's voice and picture, hop by hop, and how each hop is protected: read out of getStats() and out of
// the gateway's SDP, never assumed. Pure: no DOM, no network.

/** What is known about the way at one moment. */
export interface Path {
  /** Local candidate of the selected pair: "relay" when through TURN. */
  local?: string;
  /** Browser to TURN server: "udp", "tcp" or "tls". */
  relayProtocol?: string;
  /** The TURN URL in use, where the browser tells it. */
  relayURL?: string;
  /** SRTP protection profile, such as AEAD_AES_256_GCM, set once DTLS is through. */
  srtp?: string;
  /** DTLS cipher suite by its IANA name, and version ("DTLS 1.2"). */
  dtls?: string;
  dtlsVersion?: string;
  /** RTP profile of the core's side, from a=wicgate-core. */
  core?: string;
  /** Counted since the call began. */
  bytesOut: number;
  bytesIn: number;
  packetsOut: number;
  packetsIn: number;
  packetsLost: number;
  /** Round trip to the gateway, s. */
  roundTrip?: number;
  /** Sum of the received sound's energy, as inbound-rtp counts it; 0 is silence. */
  energy: number;
  samples: number;
  audio: Flow;
  video: Flow;
}

/** What was counted of one kind of media, as inbound-rtp and outbound-rtp have it. */
export interface Flow {
  bytesOut: number;
  bytesIn: number;
  packetsOut: number;
  packetsIn: number;
  packetsLost: number;
  framesDecoded: number;
  keyFramesDecoded: number;
  framesEncoded: number;
  frameWidth: number;
  frameHeight: number;
  /** Sent by this browser: picture loss indications and negative acknowledgements (RFC 4585). */
  pliCount: number;
  nackCount: number;
}

type Stats = Record<string, unknown>;

/** A stats report: a Map by id, as RTCStatsReport is. */
export type Report = Iterable<[string, Stats]>;

/** nothing is a way of which nothing is known yet. */
export function nothing(): Path {
  return { bytesOut: 0, bytesIn: 0, packetsOut: 0, packetsIn: 0, packetsLost: 0, energy: 0, samples: 0, audio: still(), video: still() };
}

function still(): Flow {
  return {
    bytesOut: 0,
    bytesIn: 0,
    packetsOut: 0,
    packetsIn: 0,
    packetsLost: 0,
    framesDecoded: 0,
    keyFramesDecoded: 0,
    framesEncoded: 0,
    frameWidth: 0,
    frameHeight: 0,
    pliCount: 0,
    nackCount: 0,
  };
}

/** read finds the way in a stats report and the remote SDP. Voice and picture have a pair each; the first one is shown. */
export function read(report: Report, remoteSDP: string): Path {
  const all = new Map<string, Stats>(report);
  const p = nothing();
  const core = coreProfile(remoteSDP);
  if (core) p.core = core;
  let pair: Stats | undefined;
  for (const s of all.values()) {
    switch (s.type) {
      case "transport": {
        pair ??= all.get(String(s.selectedCandidatePairId));
        text(s.srtpCipher, (v) => (p.srtp = v));
        text(s.dtlsCipher, (v) => (p.dtls = v));
        text(s.tlsVersion, (v) => (p.dtlsVersion = version(v)));
        break;
      }
      case "outbound-rtp": {
        const f = s.kind === "video" ? p.video : p.audio;
        f.bytesOut += count(s.bytesSent);
        f.packetsOut += count(s.packetsSent);
        f.framesEncoded += count(s.framesEncoded);
        break;
      }
      case "inbound-rtp": {
        const f = s.kind === "video" ? p.video : p.audio;
        f.bytesIn += count(s.bytesReceived);
        f.packetsIn += count(s.packetsReceived);
        f.packetsLost += count(s.packetsLost);
        f.framesDecoded += count(s.framesDecoded);
        f.keyFramesDecoded += count(s.keyFramesDecoded);
        f.frameWidth = Math.max(f.frameWidth, count(s.frameWidth));
        f.frameHeight = Math.max(f.frameHeight, count(s.frameHeight));
        f.pliCount += count(s.pliCount);
        f.nackCount += count(s.nackCount);
        p.energy += count(s.totalAudioEnergy);
        p.samples += count(s.totalSamplesReceived);
        break;
      }
    }
  }
  for (const n of ["bytesOut", "bytesIn", "packetsOut", "packetsIn", "packetsLost"] as const) p[n] = p.audio[n] + p.video[n];
  // Firefox has no selectedCandidatePairId, but says which pair is selected.
  pair ??= [...all.values()].find(isSelected);
  if (pair) {
    if (typeof pair.currentRoundTripTime === "number") p.roundTrip = pair.currentRoundTripTime;
    const local = all.get(String(pair.localCandidateId));
    text(local?.candidateType, (v) => (p.local = v));
    text(local?.relayProtocol, (v) => (p.relayProtocol = v));
    text(local?.url, (v) => (p.relayURL = v));
  }
  return p;
}

/**
 * selected names the local candidates that carry the media now, one for each transport: by id and port, for Firefox
 * gives a relay candidate over TCP or TLS the id of the one before an ICE restart.
 */
export function selected(report: Report): string[] {
  const all = new Map<string, Stats>(report);
  const of = (s: Stats | undefined) => (typeof s?.localCandidateId === "string" ? [`${s.localCandidateId} ${all.get(s.localCandidateId)?.port ?? ""}`] : []);
  const byTransport = [...all.values()].filter((s) => s.type === "transport").flatMap((s) => of(all.get(String(s.selectedCandidatePairId))));
  return byTransport.length > 0 ? byTransport : [...all.values()].filter(isSelected).flatMap(of);
}

function isSelected(s: Stats): boolean {
  return s.type === "candidate-pair" && (s.selected === true || (s.selected === undefined && s.nominated === true && s.state === "succeeded"));
}

/** coreProfile is the value of the edge's attribute a=wicgate-core, the RTP profile behind the gateway. */
export function coreProfile(sdp: string): string | undefined {
  return /^a=wicgate-core:([A-Za-z0-9/]{1,32})\s*$/m.exec(sdp)?.[1];
}

/** How a hop is to be shown: its protection, a headline and a finer line. */
export interface Hop {
  protection: "pending" | "sealed" | "open" | "unknown";
  title: string;
  detail: string;
}

/** The three hops: browser to TURN, TURN to gateway, gateway to core. */
export function hops(p: Path): [Hop, Hop, Hop] {
  const sealed = p.srtp !== undefined;
  const media: Pick<Hop, "protection" | "title"> = sealed ? { protection: "sealed", title: "Encrypted" } : { protection: "pending", title: "Setting up" };
  const cipher = sealed ? `DTLS-SRTP, ${cipherName(p.srtp!)}` : "keys are being agreed";
  const relayed = p.local === undefined ? "" : p.local === "relay" ? way(p.relayProtocol) : "past the relay";
  return [
    { ...media, detail: [cipher, relayed].filter(Boolean).join(", ") },
    { ...media, detail: sealed ? "the relay cannot open it" : cipher },
    coreHop(p.core),
  ];
}

function way(protocol: string | undefined): string {
  if (!protocol) return "";
  return protocol === "tls" ? "inside TLS as well" : `over ${protocol.toUpperCase()}`;
}

function coreHop(profile: string | undefined): Hop {
  switch (profile) {
    case undefined:
      return { protection: "unknown", title: "Not known", detail: "the gateway does not say" };
    case "RTP/AVP":
    case "RTP/AVPF":
      return { protection: "open", title: "Not encrypted", detail: "RTP, inside the operator’s network" };
    case "RTP/SAVP":
    case "RTP/SAVPF":
      return { protection: "sealed", title: "Encrypted", detail: "SRTP, inside the operator’s network" };
    case "UDP/TLS/RTP/SAVP":
    case "UDP/TLS/RTP/SAVPF":
      return { protection: "sealed", title: "Encrypted", detail: "DTLS-SRTP, end to end" };
  }
  return { protection: "unknown", title: "Not known", detail: `“${profile}”` };
}

/** summary says the same in sentences, for who cannot or does not want to read the picture. */
export function summary(p: Path, picture = false): string {
  if (!p.srtp) return "The encryption between this browser and the gateway is being set up.";
  const [what, verb, it, goes] = picture ? ["your voice and picture", "are", "them", "they go"] : ["your voice", "is", "it", "it goes"];
  const tls = p.relayProtocol === "tls" ? " Up to the relay, TLS is wrapped around that." : "";
  const core = coreHop(p.core);
  const tail =
    core.protection === "open"
      ? `The gateway opens ${it}, and ${goes} on without encryption inside the operator’s network.`
      : core.protection === "sealed"
        ? `Behind the gateway ${it === "it" ? "it is" : "they are"} encrypted too.`
        : `How ${goes} on behind the gateway is not known.`;
  return `From this browser to the gateway ${what} ${verb} encrypted; the relay passes ${it} on and cannot ${picture ? "listen or look" : "listen"}.${tls} ${tail}`;
}

/** cipherName makes an SRTP protection profile readable: AEAD_AES_256_GCM is AES-256-GCM. */
export function cipherName(profile: string): string {
  const gcm = /^(?:SRTP_)?AEAD_AES_(\d+)_GCM/.exec(profile);
  if (gcm) return `AES-${gcm[1]}-GCM`;
  const cm = /^(?:SRTP_)?AES(?:_CM_|)(\d+)(?:_CM|)_(?:HMAC_)?SHA1_(\d+)/.exec(profile);
  if (cm) return `AES-${cm[1]}-CM with HMAC-SHA1-${cm[2]}`;
  return profile;
}

// version names what tlsVersion holds: the record version in hex (RFC 6347 §4.1, RFC 9147 §5.3).
function version(v: string): string {
  switch (v.toUpperCase()) {
    case "FEFC":
      return "DTLS 1.3";
    case "FEFD":
      return "DTLS 1.2";
    case "FEFF":
      return "DTLS 1.0";
  }
  return v;
}

function count(v: unknown): number {
  return typeof v === "number" && Number.isFinite(v) ? v : 0;
}

function text(v: unknown, set: (v: string) => void): void {
  if (typeof v === "string" && v !== "") set(v);
}
