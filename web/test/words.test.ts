import assert from "node:assert/strict";
import test from "node:test";
import { busy, device, duration, ended, ending, gateway, guest, login, registration, relay, span, status, unreachable, type Ending } from "../src/words.ts";

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
    [{ cause: "Rejected", originator: "remote", status: 403, phrase: "Destination Not Allowed For Guests" }, /^Guests may not call Bob/, true],
    [{ cause: "Busy", originator: "remote", status: 486, phrase: "Too Many Calls For A Guest" }, /only a few calls/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=403;text="Longest Guest Call"' }, /longest time/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=403;text="Log-in revoked by the operator"' }, /ended by the operator/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=403;text="Ended by the operator"' }, /ended by the operator/, true],
    [{ cause: "Terminated", originator: "remote", reason: 'SIP;cause=403;text="Logged out"' }, /^Bob logged out/, true],
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

test("devices, relay and log-in always have words", () => {
  assert.match(device("microphone", "NotAllowedError"), /Allow it.*call again/);
  assert.match(device("camera", "NotAllowedError"), /not use the camera/);
  assert.match(device("microphone", "NotFoundError"), /No microphone/);
  assert.match(device("microphone", "NotReadableError"), /in use by another program/);
  assert.match(device("camera", "x"), /could not/);
  assert.match(relay(401), /relay refused the credential/);
  assert.match(relay(486), /too many/i);
  assert.match(relay(701), /firewall/);
  assert.match(relay(undefined), /firewall/);
  assert.match(login("access_denied"), /not allowed/);
  assert.match(login("whatever"), /failed/);
});

test("the end of a log-in is told from other reasons to close", () => {
  assert.match(ended("Log-in revoked by the operator") ?? "", /^Your log-in was ended by the operator/);
  assert.match(ended("Ended by the operator") ?? "", /operator/);
  assert.match(ended("Logged out") ?? "", /logged out/);
  assert.match(ended("Log-in replaced") ?? "", /elsewhere/);
  for (const other of [undefined, "", "message too long"]) assert.equal(ended(other), undefined);
});

test("guests, and what is not to be reached, have words", () => {
  assert.match(guest(503, "temporarily_unavailable"), /All places/);
  assert.match(guest(429, ""), /Too many/);
  assert.match(guest(405, ""), /takes no guests/);
  assert.match(guest(500, ""), /failed/);
  assert.match(unreachable(new URL("https://waf.test:8443/oauth/token"), true), /waf\.test:8443.*certificate/);
  assert.match(unreachable(new URL("https://waf.test/"), false), /offline/);
  assert.deepEqual([/edge\.test:8443.*certificate/.test(gateway("wss://edge.test:8443/sip").text), gateway("wss://edge.test:8443/sip").link], [true, "https://edge.test:8443/"]);
  assert.match(busy("Carol"), /^Carol tried/);
});

test("span", () => {
  for (const [s, want] of [[-5, "0 s"], [89.9, "89 s"], [90, "1 min"], [5399, "89 min"], [5400, "1 h"], [200_000, "2 days"]] as const) assert.equal(span(s), want);
});

test("duration", () => {
  for (const [s, want] of [[0, "0:00"], [7.9, "0:07"], [750, "12:30"], [3723, "1:02:03"], [-1, "0:00"]] as const) assert.equal(duration(s), want);
});
