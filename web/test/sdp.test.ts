import assert from "node:assert/strict";
import test from "node:test";
import { lines, relayed, video, withoutVideo } from "../src/sdp.ts";

const relay = "a=candidate:1 1 udp 1 192.0.2.1 5000 typ relay raddr 0.0.0.0 rport 0\r\n";
const host = "a=candidate:1 1 udp 1 192.0.2.1 5000 typ host\r\n";
const head = "v=0\r\na=group:BUNDLE 0 1\r\n";
const audio = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=sendrecv\r\n";
const picture = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=recvonly\r\n";

test("lines reads kind, direction and whether a line lives", () => {
  assert.deepEqual(lines(head + audio + relay + picture.replace("video 9", "video 0")), [
    { kind: "audio", mid: "0", live: true, direction: "sendrecv", relayed: true },
    { kind: "video", mid: "1", live: false, direction: "recvonly", relayed: false },
  ]);
  assert.equal(lines("v=0\r\na=inactive\r\nm=audio 5 RTP/AVP 0\r\n")[0]!.direction, "inactive");
  assert.deepEqual(lines(""), []);
  assert.equal(lines("v=0\r\n" + "m=audio 9 x 0\r\n".repeat(100)).length, 16);
});

test("an offer leaves when each line has a relay candidate of its own", () => {
  assert.equal(relayed("offer", head + audio + relay + picture), false);
  assert.equal(relayed("offer", head + audio + picture + relay), false);
  assert.equal(relayed("offer", head + audio + host + picture + relay), false);
  assert.equal(relayed("offer", head + audio + relay + picture + relay), true);
  assert.equal(relayed("offer", head + audio + relay + picture.replace("video 9", "video 0")), true);
  assert.equal(relayed("offer", head + audio + relay + picture + "a=bundle-only\r\n"), true);
  assert.equal(relayed("offer", "v=0\r\n"), false);
});

test("the lines of an answer's group share the first one's transport", () => {
  assert.equal(relayed("answer", head + audio + relay + picture), true);
  assert.equal(relayed("answer", head + audio + picture), false);
  assert.equal(relayed("answer", "v=0\r\n" + audio + relay + picture), false);
  assert.equal(relayed("offer", head + audio + relay + picture, head), true, "agreed before");
  assert.equal(relayed("offer", head + audio + relay + picture, "v=0\r\n"), false);
});

test("video is offered or not", () => {
  assert.equal(video(head + audio + picture), true);
  assert.equal(video(head + audio), false);
  assert.equal(video(head + audio + picture.replace("video 9", "video 0")), false);
  assert.equal(video(head + audio + picture.replace("recvonly", "inactive")), false);
});

test("withoutVideo gives up the picture and leaves the sound as it was", () => {
  assert.equal(withoutVideo(head + audio + picture), "v=0\r\na=group:BUNDLE 0\r\n" + audio + picture.replace("video 9", "video 0"));
  assert.equal(withoutVideo("v=0\r\n" + audio), "v=0\r\n" + audio);
  assert.equal(video(withoutVideo(head + audio + picture)), false);
});
