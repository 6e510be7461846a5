import assert from "node:assert/strict";
import test from "node:test";
import { nothing, type Path } from "../src/path.ts";
import { History, milliseconds, percent, rate } from "../src/plots.ts";

const at = (s: number, more: Partial<Path> = {}): [Path, number] => [{ ...nothing(), bytesIn: 4000 * s, bytesOut: 4000 * s, packetsIn: 50 * s, roundTrip: 0.02, ...more }, s * 1000];

test("nothing is known, and nothing claimed, before two readings", () => {
  const h = new History();
  assert.deepEqual(h.plots().map((p) => [p.value, p.line]), [["–", ""], ["–", ""], ["–", ""]]);
  h.add(...at(1));
  assert.equal(h.plots()[0].value, "–");
  h.add(...at(2));
  assert.deepEqual(h.plots().map((p) => [p.name, p.value, p.line]), [["bitrate", "64 kbit/s", ""], ["loss", "0 %", ""], ["round-trip", "20 ms", ""]]);
});

test("curves run to the right edge and say their span", () => {
  const h = new History();
  for (let s = 1; s <= 10; s++) h.add(...at(s, { packetsLost: s > 8 ? 5 : 0, roundTrip: s === 10 ? 0.2 : 0.02 }));
  const [bitrate, loss, trip] = h.plots();
  assert.match(bitrate.line, /^M104 2(L[\d.]+ 2)+$/);
  assert.match(bitrate.line, /L120 2$/);
  assert.match(bitrate.area, /V32H104Z$/);
  assert.match(loss.spoken, /^Packets lost: 0 %, in the last minute between 0 % and 9\.1 %$/);
  assert.match(trip.spoken, /200 ms, in the last minute between 20 ms and 200 ms/);
});

test("a minute is kept, and counters that fall do no harm", () => {
  const h = new History();
  for (let s = 1; s <= 200; s++) h.add(...at(s));
  assert.ok(h.plots()[0].line.split("L").length <= 61);
  h.add(...at(201, { bytesIn: 0, bytesOut: 0, packetsIn: 0 }));
  assert.equal(h.plots()[0].value, "0 kbit/s");
  assert.equal(h.plots()[1].value, "0 %", "loss is unknown where nothing came, so the last known stands");
  assert.ok(!/NaN|Infinity|undefined/.test(JSON.stringify(h.plots())));
});

test("values as people read them", () => {
  assert.deepEqual([rate(63.6), rate(1540)], ["64 kbit/s", "1.5 Mbit/s"]);
  assert.deepEqual([percent(0), percent(0.004), percent(0.5)], ["0 %", "0.4 %", "50 %"]);
  assert.deepEqual([milliseconds(0.0012), milliseconds(0.0411)], ["1.2 ms", "41 ms"]);
});
