import assert from "node:assert/strict";
import test from "node:test";
import { Life } from "../src/life.ts";

const start = { steady: 1000, wall: 1_700_000_000_000 };
const after = (steady: number, wall = steady) => ({ steady: start.steady + steady, wall: start.wall + wall });

test("a life ends after its length by whichever clock is further on", () => {
  const l = new Life(600_000, start);
  assert.equal(l.left(start), 600_000);
  assert.equal(l.left(after(60_000)), 540_000);
  assert.equal(l.left(after(1000, 500_000)), 100_000, "the steady clock stood still in sleep");
  assert.equal(l.left(after(1000, -86_400_000)), 599_000, "the wall clock was set back");
  assert.equal(l.left(after(700_000)), 0);
});

test("a life is renewed a minute before its end, a short one in its last quarter", () => {
  assert.equal(new Life(600_000, start).due(start), 540_000);
  assert.equal(new Life(8_000, start).due(start), 6_000);
  assert.equal(new Life(8_000, start).due(after(7_000)), 0);
});

test("a wrong clock changes neither", () => {
  for (const wrong of [10_000, 600_000, -600_000]) {
    const l = new Life(60_000, { steady: 0, wall: start.wall + wrong });
    assert.equal(l.left({ steady: 20_000, wall: start.wall + wrong + 20_000 }), 40_000);
    assert.equal(l.end({ steady: 20_000, wall: start.wall + wrong + 20_000 }), start.wall + wrong + 60_000);
  }
});
