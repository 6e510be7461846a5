import assert from "node:assert/strict";
import test from "node:test";
import { Life, now } from "../src/life.ts";
import type { Config, Login } from "../src/oauth.ts";
import { Renewal } from "../src/renewal.ts";

const config = { token_endpoint: "https://waf.test/oauth/token", client_id: "wic" } as Config;
const login = (ms: number, refresh?: string): Login => ({ token: "t0", ...(refresh === undefined ? {} : { refresh }), life: new Life(ms, now()), name: "Alice", uri: "sip:alice@ims.test", guest: false });

// world answers the token endpoint and notes what it was asked.
function world(answer: (form: URLSearchParams) => { status: number; body: unknown } | "down") {
  const asked: string[] = [];
  Object.assign(globalThis, {
    window: globalThis,
    location: { href: "https://portal.test/" },
    fetch: (_: string, init: { body: URLSearchParams }) => {
      asked.push(init.body.get("refresh_token") ?? "");
      const a = answer(init.body);
      return a === "down" ? Promise.reject(new TypeError("failed to fetch")) : Promise.resolve(new Response(JSON.stringify(a.body), { status: a.status }));
    },
  });
  return asked;
}

function until(done: () => boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = Date.now() + 5000;
    const look = () => (done() ? resolve() : Date.now() > end ? reject(new Error("not within 5 s")) : setTimeout(look, 5));
    look();
  });
}

test("a token is renewed in time, again and again, with a refresh token that rotates", async () => {
  let n = 0;
  const asked = world(() => ({ status: 200, body: { access_token: `t${++n}`, token_type: "Bearer", expires_in: 0.2, refresh_token: `r${n}` } }));
  const got: string[] = [];
  const r = new Renewal(config, login(200, "r0"), { renewed: async (l) => void got.push(l.token), ended: (t) => assert.equal(t, "") });
  await until(() => got.length >= 3);
  r.stop();
  assert.deepEqual(asked.slice(0, 3), ["r0", "r1", "r2"]);
  assert.deepEqual(got.slice(0, 3), ["t1", "t2", "t3"]);
  assert.equal(r.current.uri, "sip:alice@ims.test");
});

test("of several renewals at once there is one", async () => {
  const asked = world(() => ({ status: 200, body: { access_token: "t1", token_type: "Bearer", expires_in: 3600, refresh_token: "r1" } }));
  const r = new Renewal(config, login(3_600_000, "r0"), { renewed: async () => {}, ended: (t) => assert.equal(t, "") });
  await Promise.all([r.renew(), r.renew(), r.renew()]);
  r.stop();
  assert.deepEqual(asked, ["r0"]);
});

test("a WAF that is away is asked again; a session that has ended is told", async () => {
  let down = true;
  const asked = world(() => (down ? "down" : { status: 400, body: { error: "invalid_grant" } }));
  const told: string[] = [];
  const r = new Renewal(config, login(60_000, "r0"), { renewed: async () => {}, ended: (t) => void told.push(t) });
  await r.renew().catch(() => {});
  assert.deepEqual(told, []);
  down = false;
  await until(() => told.length > 0);
  assert.equal(asked.length, 2);
  assert.match(told[0]!, /session has ended/);
});

test("without a refresh token the log-in ends with its token, and not before", async () => {
  const asked = world(() => "down");
  const told: string[] = [];
  const begun = Date.now();
  new Renewal(config, login(200), { renewed: async () => {}, ended: (t) => void told.push(t) });
  await until(() => told.length > 0);
  assert.ok(Date.now() - begun >= 195);
  assert.match(told[0]!, /run out/);
  assert.deepEqual(asked, []);
});
