import assert from "node:assert/strict";
import test from "node:test";
import { offset, words } from "../src/clock.ts";

const date = "Tue, 24 Nov 2026 10:00:00 GMT";
const there = Date.parse(date);

test("offset is the server's lead", () => {
  assert.equal(offset(date, there - 100, there + 100), 500);
  assert.equal(offset(date, there + 600_000, there + 600_000), -599_500);
  for (const none of [null, undefined, "", "yesterday"]) assert.equal(offset(none, 0, 0), undefined);
});

test("ten seconds are nobody's trouble, ten minutes are named", () => {
  for (const fine of [0, 10_000, -10_000, 299_000]) assert.equal(words(fine), "");
  assert.match(words(600_500), /clock is 10 minutes slow\. Set it right/);
  assert.match(words(-599_500), /clock is 10 minutes fast/);
  assert.match(words(5 * 3_600_000), /5 hours slow/);
  assert.match(words(-400 * 86_400_000), /400 days fast/);
});
