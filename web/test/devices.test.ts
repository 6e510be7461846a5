import assert from "node:assert/strict";
import test from "node:test";
import { sort } from "../src/devices.ts";

test("sort puts devices under their kinds and leaves aliases out", () => {
  assert.deepEqual(
    sort([
      { kind: "audioinput", deviceId: "default", label: "Default - Headset" },
      { kind: "audioinput", deviceId: "a", label: "Headset" },
      { kind: "audioinput", deviceId: "b", label: "" },
      { kind: "videoinput", deviceId: "c", label: "Webcam" },
      { kind: "audiooutput", deviceId: "communications", label: "x" },
      { kind: "audiooutput", deviceId: "", label: "" }, // before the person has allowed anything
    ]),
    { microphone: [{ id: "a", label: "Headset" }, { id: "b", label: "Microphone 2" }], camera: [{ id: "c", label: "Webcam" }], speaker: [] },
  );
  const many = Array.from({ length: 100 }, (_, i) => ({ kind: "videoinput" as const, deviceId: String(i), label: "x" }));
  assert.equal(sort(many).camera.length, 32);
});
