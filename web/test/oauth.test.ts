import assert from "node:assert/strict";
import test from "node:test";
import { authorizeURL, base64url, challenge, isAnswer, LoginError, random, readAnswer, readLogin, readPending, readServers, type Config } from "../src/oauth.ts";

if (!("crypto" in globalThis)) {
  // Node 18 keeps it behind a module; browsers and Node 20 have it in place.
  const { webcrypto } = await import("node:crypto" as string);
  Object.assign(globalThis, { crypto: webcrypto });
}

const config: Config = {
  issuer: "https://waf.test",
  authorization_endpoint: "https://waf.test/oauth/authorize?x=1",
  token_endpoint: "https://waf.test/oauth/token",
  authorization_response_iss_parameter_supported: true,
  client_id: "wic",
  scope: "sip",
  sip_url: "wss://edge.test/sip",
  domain: "ims.test",
};

test("challenge is RFC 7636 appendix B's", async () => {
  assert.equal(await challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
});

test("base64url has neither padding nor + and /", () => {
  assert.equal(base64url(new Uint8Array([0xff, 0xef, 0xbe])), "_---");
  assert.equal(base64url(new Uint8Array([0])), "AA");
  assert.match(random(32), /^[A-Za-z0-9_-]{43}$/);
});

test("authorizeURL asks for a code with S256 and keeps the endpoint's own query", async () => {
  const u = new URL(await authorizeURL(config, "https://portal.test", { state: "s", verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", started: 0 }));
  assert.equal(u.origin + u.pathname, "https://waf.test/oauth/authorize");
  assert.deepEqual(Object.fromEntries(u.searchParams), {
    x: "1",
    response_type: "code",
    client_id: "wic",
    redirect_uri: "https://portal.test/",
    scope: "sip",
    state: "s",
    code_challenge: "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    code_challenge_method: "S256",
  });
});

test("authorizeURL can ask without asking the person", async () => {
  assert.equal(new URL(await authorizeURL(config, "https://portal.test", { state: "s", verifier: "v", started: 0 }, true)).searchParams.get("prompt"), "none");
});

test("readAnswer takes the code only from the log-in that was begun here", () => {
  const p = { state: "s1", verifier: "v", started: 1000 };
  const iss = "&iss=https%3A%2F%2Fwaf.test";
  assert.equal(readAnswer(config, `?code=c1&state=s1${iss}`, p, 2000), "c1");
  const lenient = { ...config, authorization_response_iss_parameter_supported: false };
  assert.equal(readAnswer(lenient, "?code=c1&state=s1", p, 2000), "c1");

  const refused = (search: string, why: RegExp, c = config, pending: typeof p | null = p, now = 2000) =>
    assert.throws(
      () => readAnswer(c, search, pending, now),
      (e) => e instanceof LoginError && why.test(e.message),
      search,
    );
  refused(`?code=c1&state=s2${iss}`, /not begun in this window/);
  refused(`?code=c1&state=s1${iss}`, /not begun in this window/, config, null);
  refused("?code=c1&state=s1", /another log-in service/);
  refused("?code=c1&state=s1&iss=https%3A%2F%2Fevil.test", /another log-in service/);
  refused("?code=c1&state=s1&iss=https%3A%2F%2Fevil.test", /another log-in service/, lenient);
  refused(`?code=c1&code=c2&state=s1${iss}`, /malformed/);
  refused(`?code=&state=s1${iss}`, /malformed/);
  refused(`?error=access_denied&state=s1${iss}`, /not allowed/);
  refused(`?code=c1&state=s1${iss}`, /too long/, config, p, 1000 + 11 * 60_000);
});

test("isAnswer and readPending know what they are given", () => {
  assert.ok(isAnswer("?code=x&state=y"));
  assert.ok(isAnswer("?error=x&state=y"));
  assert.ok(!isAnswer("?code=x"));
  assert.ok(!isAnswer(""));
  assert.deepEqual(readPending('{"state":"a","verifier":"b","started":1}'), { state: "a", verifier: "b", started: 1 });
  for (const bad of [null, "", "{", "[]", "null", '"x"', '{"state":1}']) assert.equal(readPending(bad), null, String(bad));
});

const begun = { steady: 1000, wall: 5000 };

test("readLogin takes identity, life and what gets the next token", () => {
  const r = { access_token: "t", token_type: "Bearer", expires_in: 3600, refresh_token: "r", name: "Alice", ims: { impi: "a@x", impu: ["sip:alice@ims.test", "tel:1"], domain: "ims.test" } };
  const { life, ...rest } = readLogin(r, begun);
  assert.deepEqual(rest, { token: "t", refresh: "r", name: "Alice", uri: "sip:alice@ims.test", guest: false });
  assert.equal(life.left({ steady: 1000 + 600_000, wall: 5000 }), 3_000_000);
  assert.equal(readLogin({ access_token: "t", token_type: "bearer", ims: { impu: "alice@ims.test" } }, begun).uri, "sip:alice@ims.test");
  assert.equal(readLogin({ access_token: "t", token_type: "bearer", ims: { impu: "sip:guest-07@ims.test", scenario: 3 } }, begun).guest, true);
  for (const bad of [{}, { access_token: "t", token_type: "Bearer" }, { access_token: "t", token_type: "pop", ims: { impu: "x" } }, { token_type: "Bearer", ims: { impu: "x" } }]) {
    assert.throws(() => readLogin(bad, begun), (e) => e instanceof LoginError && !e.message.includes("t\""));
  }
});

test("readLogin of a refresh keeps who it is", () => {
  const before = { ...readLogin({ access_token: "t", token_type: "bearer", name: "Guest 7", ims: { impu: "sip:guest-07@ims.test" } }, begun), guest: true };
  const next = readLogin({ access_token: "u", token_type: "bearer", expires_in: 60 }, begun, before);
  assert.deepEqual([next.token, next.name, next.uri, next.guest], ["u", "Guest 7", "sip:guest-07@ims.test", true]);
});

test("readServers takes TURN servers with credentials and nothing else", () => {
  const good = { urls: ["turn:127.0.0.1:3478?transport=udp", "https://evil.test"], username: "o1.k.t", credential: "c" };
  assert.deepEqual(readServers({ ice_servers: [good, { urls: "stun:x" }, { urls: "turn:y", username: "u" }] }), [
    { urls: ["turn:127.0.0.1:3478?transport=udp"], username: "o1.k.t", credential: "c" },
  ]);
  for (const bad of [{}, { ice_servers: [] }, { ice_servers: {} }, { ice_servers: [{ urls: "turn:x", username: "u", credential: "" }] }]) {
    assert.throws(() => readServers(bad), (e) => e instanceof LoginError);
  }
});
