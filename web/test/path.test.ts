import assert from "node:assert/strict";
import test from "node:test";
import { cipherName, coreProfile, hops, nothing, read, selected, summary } from "../src/path.ts";

// As Chromium 156 reports an audio call through TURN, cut to what is read.
const chromium: [string, Record<string, unknown>][] = [
  ["T", { type: "transport", selectedCandidatePairId: "P", srtpCipher: "SRTP_AEAD_AES_256_GCM", dtlsCipher: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", tlsVersion: "FEFD" }],
  ["P", { type: "candidate-pair", localCandidateId: "L", state: "succeeded", nominated: true, currentRoundTripTime: 0.004 }],
  ["L", { type: "local-candidate", candidateType: "relay", relayProtocol: "udp", port: 50000, url: "turn:127.0.0.1:3478?transport=udp" }],
  ["I", { type: "inbound-rtp", kind: "audio", packetsReceived: 50, bytesReceived: 4000, packetsLost: 1, totalAudioEnergy: 0.25, totalSamplesReceived: 48000 }],
  ["O", { type: "outbound-rtp", kind: "audio", packetsSent: 51, bytesSent: 4100 }],
];
const sdp = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=wicgate-core:RTP/AVP\r\n";

test("read finds the way in Chromium's report", () => {
  assert.deepEqual(read(chromium, sdp), {
    local: "relay",
    relayProtocol: "udp",
    relayURL: "turn:127.0.0.1:3478?transport=udp",
    srtp: "SRTP_AEAD_AES_256_GCM",
    dtls: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    dtlsVersion: "DTLS 1.2",
    core: "RTP/AVP",
    bytesOut: 4100,
    bytesIn: 4000,
    packetsOut: 51,
    packetsIn: 50,
    packetsLost: 1,
    roundTrip: 0.004,
    energy: 0.25,
    samples: 48000,
    audio: { ...nothing().audio, bytesOut: 4100, bytesIn: 4000, packetsOut: 51, packetsIn: 50, packetsLost: 1 },
    video: nothing().video,
  });
});

test("read keeps voice and picture apart, and sums them", () => {
  const p = read(
    [
      ...chromium,
      ["V", { type: "inbound-rtp", kind: "video", packetsReceived: 10, bytesReceived: 9000, packetsLost: 2, framesDecoded: 24, keyFramesDecoded: 1, pliCount: 3, nackCount: 4, frameWidth: 640, frameHeight: 360 }],
      ["W", { type: "outbound-rtp", kind: "video", packetsSent: 11, bytesSent: 9900, framesEncoded: 25 }],
    ],
    sdp,
  );
  assert.deepEqual([p.packetsIn, p.packetsLost, p.bytesOut, p.audio.packetsIn], [60, 3, 14_000, 50]);
  assert.deepEqual(p.video, { bytesOut: 9900, bytesIn: 9000, packetsOut: 11, packetsIn: 10, packetsLost: 2, framesDecoded: 24, keyFramesDecoded: 1, framesEncoded: 25, frameWidth: 640, frameHeight: 360, pliCount: 3, nackCount: 4 });
  assert.match(summary(p, true), /voice and picture are encrypted.*cannot listen or look.*opens them, and they go on/);
});

test("selected finds the local candidates in use, one a transport", () => {
  assert.deepEqual(selected(chromium), ["L 50000"]);
  assert.deepEqual(selected([...chromium, ["T2", { type: "transport", selectedCandidatePairId: "P2" }], ["P2", { type: "candidate-pair", localCandidateId: "L2" }]]), ["L 50000", "L2 "]);
  assert.deepEqual(selected(chromium.filter(([id]) => id !== "T")), ["L 50000"]);
  assert.deepEqual(selected([]), []);
});

test("TLS to the relay is named beside what it wraps", () => {
  const tls = chromium.map(([id, s]) => (id === "L" ? [id, { ...s, relayProtocol: "tls" }] : [id, s]) as [string, Record<string, unknown>]);
  assert.match(hops(read(tls, sdp))[0].detail, /AES-256-GCM, inside TLS as well/);
  assert.match(summary(read(tls, sdp)), /TLS is wrapped around/);
});

test("read finds the pair where the transport does not name it", () => {
  const firefox = chromium.filter(([id]) => id !== "T").map(([id, s]) => (id === "P" ? [id, { ...s, selected: true }] : [id, s]) as [string, Record<string, unknown>]);
  assert.equal(read(firefox, sdp).relayProtocol, "udp");
});

test("read of nothing is nothing, and claims nothing", () => {
  const p = read([], "");
  assert.equal(p.energy, 0);
  assert.deepEqual(
    hops(p).map((h) => h.protection),
    ["pending", "pending", "unknown"],
  );
  assert.ok(!/your voice is encrypted/.test(summary(p)));
});

test("hops say what is protected by what, and that the core's hop is not", () => {
  const [one, two, three] = hops(read(chromium, sdp));
  assert.deepEqual(one, { protection: "sealed", title: "Encrypted", detail: "DTLS-SRTP, AES-256-GCM, over UDP" });
  assert.equal(two.protection, "sealed");
  assert.equal(three.protection, "open");
  assert.match(three.title + three.detail, /Not encrypted.*inside the operator/);
  assert.match(summary(read(chromium, sdp)), /without encryption inside/);
});

test("a protected core hop, an unknown one, and a call that goes past the relay", () => {
  assert.equal(hops(read(chromium, "a=wicgate-core:RTP/SAVP\r\n"))[2].protection, "sealed");
  assert.equal(hops(read(chromium, "a=wicgate-core:FOO/BAR\r\n"))[2].protection, "unknown");
  const direct = chromium.map(([id, s]) => (id === "L" ? [id, { type: "local-candidate", candidateType: "host" }] : [id, s]) as [string, Record<string, unknown>]);
  assert.match(hops(read(direct, sdp))[0].detail, /past the relay/);
});

test("coreProfile reads one attribute and no more", () => {
  assert.equal(coreProfile(sdp), "RTP/AVP");
  assert.equal(coreProfile("a=wicgate-core:RTP/AVP\n"), "RTP/AVP");
  assert.equal(coreProfile("a=x a=wicgate-core:RTP/AVP"), undefined);
  assert.equal(coreProfile("a=wicgate-core:<b>"), undefined);
});

test("cipherName", () => {
  assert.equal(cipherName("AEAD_AES_128_GCM"), "AES-128-GCM");
  assert.equal(cipherName("AES_CM_128_HMAC_SHA1_80"), "AES-128-CM with HMAC-SHA1-80");
  assert.equal(cipherName("SRTP_AES128_CM_SHA1_80"), "AES-128-CM with HMAC-SHA1-80");
  assert.equal(cipherName("NEW"), "NEW");
});
