import assert from "node:assert/strict";
import test from "node:test";
import * as lib from "jssip/lib/Socket";
import type { Socket } from "jssip/lib/Socket";
import { Wire } from "../src/wire.ts";

// Its declarations leave out what JsSIP itself judges a socket by.
const { isSocket } = lib as unknown as { isSocket(s: unknown): boolean };

class Fake implements Socket {
  via_transport = "WSS";
  url = "wss://edge.test/sip";
  sip_uri = "sip:edge.test;transport=ws";
  did: string[] = [];
  connect() {
    this.did.push("connect");
  }
  disconnect() {
    this.did.push("disconnect");
  }
  send(m: unknown) {
    this.did.push(`send ${String(m)}`);
    return true;
  }
  isConnected() {
    return true;
  }
  isConnecting() {
    return false;
  }
  onconnect() {}
  ondisconnect(_error: boolean, _code?: number, _reason?: string) {}
  ondata<T>(_data: T) {}
}

test("Wire is a socket to JsSIP, and hears each message before it", () => {
  const fake = new Fake();
  const order: string[] = [];
  const w = new Wire(fake, (m) => order.push(`heard ${m}`));
  assert.ok(isSocket(w));
  // As JsSIP's Transport does: it sets its own at each connect.
  w.onconnect = () => order.push("connected");
  w.ondisconnect = (error, code, reason) => order.push(`disconnected ${error} ${code} ${reason}`);
  w.ondata = (d) => order.push(`data ${String(d)}`);
  w.connect();
  fake.onconnect();
  fake.ondata("one");
  fake.ondata("two");
  fake.ondata(new ArrayBuffer(3)); // binary goes on unheard
  fake.ondisconnect(false, 1008, "Logged out");
  assert.equal(w.send("x"), true);
  w.disconnect();
  assert.deepEqual(order, ["connected", "heard one", "data one", "heard two", "data two", "data [object ArrayBuffer]", "disconnected false 1008 Logged out"]);
  assert.deepEqual(fake.did, ["connect", "send x", "disconnect"]);
  assert.deepEqual([w.url, w.sip_uri, w.via_transport, w.isConnected(), w.isConnecting()], [fake.url, fake.sip_uri, "WSS", true, false]);
});
