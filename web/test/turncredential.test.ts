import assert from "node:assert/strict";
import test from "node:test";
import { ofRegister, parse, registered } from "../src/turncredential.ts";

const value = 'uri="turn:turn.ims.test:3478?transport=udp",uri="turns:turn.ims.test:5349?transport=tcp",username="1795496400:k3v9t2",password="tOntmKRcz3ebGfoCO7lormDH+sQ=",expires=1795496400';
const credential = {
  urls: ["turn:turn.ims.test:3478?transport=udp", "turns:turn.ims.test:5349?transport=tcp"],
  username: "1795496400:k3v9t2",
  credential: "tOntmKRcz3ebGfoCO7lormDH+sQ=",
  expires: 1795496400,
};
const ok = (more: string) => `SIP/2.0 200 OK\r\nVia: SIP/2.0/WSS x\r\nCSeq: 7 REGISTER\r\n${more}\r\n\r\n`;

test("parse reads the header as the edge writes it", () => {
  assert.deepEqual(parse(value), credential);
  assert.deepEqual(parse(value.replaceAll(",", " , ")), credential);
  assert.equal(parse('uri="turn:x",username="a\\"b",password="p",expires=1')?.username, 'a"b');
});

test("parse takes nothing that is not whole", () => {
  for (const bad of [
    "",
    "request",
    value.replace(/expires=\d+/, "expires=soon"),
    value.replace(/expires=\d+/, ""),
    value.replace(/password="[^"]*"/, 'password=""'),
    'uri="https://evil.test",username="u",password="p",expires=1',
    'username="u",password="p",expires=1',
  ]) {
    assert.equal(parse(bad), undefined, bad);
  }
  assert.equal(parse('uri="turn:x",'.repeat(100) + 'username="u",password="p",expires=1')?.urls.length, 8);
});

test("each 200 to a REGISTER is read, and nothing else", () => {
  assert.deepEqual(ofRegister(ok(`TURN-Credential: ${value}`)), credential);
  assert.deepEqual(ofRegister(ok(`turn-credential:${value.replace(",username", ",\r\n username")}`)), credential, "folded, other case");
  assert.equal(ofRegister(ok("X: y")), undefined);
  assert.equal(registered(ok("X: y")), true);
  for (const other of [
    ok(`TURN-Credential: ${value}`).replace("200 OK", "401 Unauthorized"),
    ok(`TURN-Credential: ${value}`).replace("REGISTER", "INVITE"),
    `REGISTER sip:x SIP/2.0\r\nCSeq: 7 REGISTER\r\nTURN-Credential: ${value}\r\n\r\n`,
    `SIP/2.0 200 OK\r\nCSeq: 7 REGISTER\r\n\r\nTURN-Credential: ${value}\r\n`, // in the body
    "\r\n\r\n",
    "",
  ]) {
    assert.equal(ofRegister(other), undefined, other);
  }
});
