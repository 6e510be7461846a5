import assert from "node:assert/strict";
import test from "node:test";
import { complete, person, plain, same, suffix } from "../src/address.ts";

test("complete makes a SIP URI of what people type", () => {
  for (const [input, want] of [
    ["bob", "sip:bob@ims.test"],
    ["  bob ", "sip:bob@ims.test"],
    ["bob@Example.ORG", "sip:bob@example.org"],
    ["sip:bob@ims.test", "sip:bob@ims.test"],
    ["SIP:bob", "sip:bob@ims.test"],
    ["bob@example.org:5070", "sip:bob@example.org:5070"],
    ["bob@[2001:db8::1]", "sip:bob@[2001:db8::1]"],
    ["b.o-b_1+x=y", "sip:b.o-b_1+x=y@ims.test"],
    ["björn", "sip:bj%C3%B6rn@ims.test"],
    ["bj%C3%B6rn", "sip:bj%C3%B6rn@ims.test"],
    ["100%", "sip:100%25@ims.test"],
    ["+49 (170) 123-45 67", "sip:+491701234567@ims.test;user=phone"],
    ["tel:+49-170-1234567", "sip:+491701234567@ims.test;user=phone"],
    ["112", "sip:112@ims.test;user=phone"],
    ["7", "sip:7@ims.test"],
  ] as const) {
    assert.deepEqual(complete(input, "ims.test"), { uri: want }, input);
  }
});

test("complete says why an address cannot be", () => {
  for (const [input, want] of [
    ["", /whom/],
    ["   ", /whom/],
    ["@ims.test", /before the “@”/],
    ["bob smith", /spaces/],
    ["bob@ims test", /not the name of a network/],
    ["bob@", /not the name of a network/],
    ["bob@-x", /not the name of a network/],
    ["a@b@c", /cannot hold/],
    ["bob;x=y", /cannot hold/],
    ["bob?Subject=x@ims.test", /cannot hold/],
    ["<bob>", /cannot hold/],
    ["bob\r\nVia: x", /spaces/],
    ["sips:bob@ims.test", /sips:/],
    ["https://example.org/", /Only SIP/],
    ["tel:bob", /not a telephone number/],
    ["x".repeat(256), /too long/],
  ] as const) {
    const got = complete(input, "ims.test");
    assert.match(got.error ?? `completed to ${got.uri}`, want, JSON.stringify(input));
  }
});

test("suffix shows only what complete would add", () => {
  assert.equal(suffix("bob", "ims.test"), "@ims.test");
  assert.equal(suffix("", "ims.test"), "@ims.test");
  for (const s of ["bob@", "sip:bob", "+49 170", "112"]) assert.equal(suffix(s, "ims.test"), "", s);
});

test("person shows the network's name, else the address' own, and never controls", () => {
  assert.deepEqual(person("sip:bob@ims.test;user=phone", "Bob"), { name: "Bob", address: "sip:bob@ims.test" });
  assert.deepEqual(person("sip:bj%C3%B6rn@ims.test"), { name: "björn", address: "sip:björn@ims.test" });
  assert.equal(person("sip:bob@ims.test", "\u202Eecila\u0000\n").name, "ecila");
  assert.equal(person("sip:%00@x", "").name, "Somebody");
  assert.equal(plain("x".repeat(500)).length, 64);
  assert.equal(plain("😀".repeat(500), 4), "😀😀😀…");
});

test("same compares users with case, hosts without", () => {
  assert.ok(same("sip:bob@IMS.test", "sip:bob@ims.test;transport=ws"));
  assert.ok(same("sip:bj%C3%B6rn@x", "sip:björn@x"));
  assert.ok(!same("sip:Bob@ims.test", "sip:bob@ims.test"));
});
