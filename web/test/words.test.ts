import assert from "node:assert/strict";
import test from "node:test";
import { duration, ending, login, microphone, registration, relay, status, type Ending } from "../src/words.ts";

test("ending tells faults from ordinary ends, in words without jargon", () => {
  const base = { connected: true, name: "Bob" };
  for (const [e, want, fault] of [
    [{ cause: "Terminated", originator: "remote" }, /^Bob hung up\.$/, false],
    [{ cause: "Terminated", originator: "local" }, /^You hung up\.$/, false],
    [{ cause: "Canceled", originator: "local" }, /before it was answered/, false],
    [{ cause: "Canceled", originator: "remote" }, /gave up/, false],
    [{ cause: "Canceled", originator: "remote", reason: 'SIP;cause=200;text="Call completed elsewhere"' }, /another device/, false],
    [{ cause: "Rejected", originator: "local" }, /^You declined Bob’s call\.$/, false],
    [{ cause: "Rejected", originator: "remote", status: 603 }, /declined/, true],
    [{ cause: "Rejected", originator: "remote", status: 403 }, /does not allow/, true],
    [{ cause: "Busy", originator: "remote", status: 486 }, /busy/, true],
    [{ cause: "Not Found", originator: "remote", status: 404 }, /not known/, true],
    [{ cause: "Unavailable", originator: "remote", status: 480 }, /not logged in/, true],
    [{ cause: "SIP Failure Code", originator: "remote", status: 503 }, /takes no calls/, true],
    [{ cause: "SIP Failure Code", originator: "remote", status: 500 }, /fault \(500\)/, true],
    [{ cause: "Connection Error", originator: "system" }, /connection/, true],
    [{ cause: "Request Timeout", originator: "system" }, /no answer in time/, true],
    [{ cause: "RTP Timeout", originator: "local" }, /broke off/, true],
    [{ cause: "RTP Timeout", originator: "local", connected: false }, /No way/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=503;text="Media Lost"' }, /broke off/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=503;text="Media Encryption Failed"' }, /encryption/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=503;text="No Media Path"' }, /relay/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=430;text="Flow Failed"' }, /^Bob lost the connection/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=503;text="Core Connection Lost"' }, /operator’s network/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=599;text="x"' }, /network ended/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=200;text="Call Ended"' }, /hung up/, false],
    [{ cause: "Canceled", originator: "remote", reason: 'SIP;cause=487;text="Answered Elsewhere"' }, /another device/, false],
    [{ cause: "SIP Failure Code", originator: "remote", status: 503, phrase: "No Media Path" }, /relay/, true],
    [{ cause: "SIP Failure Code", originator: "remote", status: 503, phrase: "Media Gateway Unavailable" }, /takes no calls/, true],
    [{ cause: "WebRTC Error", originator: "local" }, /could not agree/, true],
    [{}, /inside this page/, true],
  ] as [Partial<Ending>, RegExp, boolean][]) {
    const got = ending({ ...base, ...e });
    assert.match(got.text, want, JSON.stringify(e));
    assert.equal(got.fault, fault, JSON.stringify(e));
    assert.ok(!/\b(SIP|SDP|ICE|DTLS|undefined|null)\b/.test(got.text), got.text);
  }
});

test("every status has words", () => {
  for (let code = 300; code < 700; code++) assert.match(status(code, "Bob"), /^\S.*\.$/);
});

test("registration tells what helps", () => {
  assert.equal(registration(401, "Authentication Error").again, "login");
  assert.equal(registration(403, "Rejected").again, "login");
  assert.equal(registration(503, "SIP Failure Code").again, "retry");
  assert.equal(registration(undefined, "Request Timeout").again, "retry");
});

test("microphone, relay and login always have words", () => {
  assert.match(microphone("NotAllowedError"), /Allow it/);
  assert.match(microphone("NotFoundError"), /No microphone/);
  assert.match(microphone("x"), /could not/);
  assert.match(relay(401), /pass/);
  assert.match(relay(486), /too many/i);
  assert.match(relay(701), /firewall/);
  assert.match(relay(undefined), /firewall/);
  assert.match(login("access_denied"), /not allowed/);
  assert.match(login("whatever"), /failed/);
});

test("duration", () => {
  for (const [s, want] of [[0, "0:00"], [7.9, "0:07"], [750, "12:30"], [3723, "1:02:03"], [-1, "0:00"]] as const) assert.equal(duration(s), want);
});
