// The page's elements and what they show. It holds no state of its own but the DOM's; every text that
// comes from outside goes in as text, never as markup.

import { suffix } from "./address.ts";
import { hops, summary, cipherName, type Hop, type Path } from "./path.ts";
import type { Call, CallState, Registration } from "./phone.ts";
import { duration } from "./words.ts";

const title = document.title;

function $<T extends Element = HTMLElement>(id: string): T {
  const e = document.getElementById(id);
  if (!e) throw new Error(`page lacks #${id}`);
  return e as unknown as T;
}

export const at = {
  login: $<HTMLButtonElement>("login"),
  logout: $<HTMLButtonElement>("logout"),
  dial: $<HTMLFormElement>("dial"),
  field: $("field"),
  callee: $<HTMLInputElement>("callee"),
  call: $<HTMLButtonElement>("call"),
  answer: $<HTMLButtonElement>("answer"),
  decline: $<HTMLButtonElement>("decline"),
  hangup: $<HTMLButtonElement>("hangup"),
  mute: $<HTMLButtonElement>("mute"),
  dismiss: $<HTMLButtonElement>("dismiss"),
  remote: $<HTMLAudioElement>("remote"),
};

let domain = "";
let clock = 0; // the timer's interval
let before: Element | null = null; // what had the focus before a call took it
let flow: { out: number; in: number } = { out: 0, in: 0 };

/** landing shows the page of somebody who is not logged in. */
export function landing(): void {
  document.body.dataset.view = "landing";
  $("landing").hidden = false;
  $("phone").hidden = true;
  $("account").hidden = true;
  at.login.disabled = false;
}

/** leaving tells that the way goes to the WAF, or back from it. */
export function leaving(text: string): void {
  at.login.disabled = true;
  say(text);
  $("login-hint").textContent = text;
}

/** phone shows the telephone. */
export function phone(home: string): void {
  domain = home;
  document.body.dataset.view = "phone";
  $("landing").hidden = true;
  $("phone").hidden = false;
  $("account").hidden = false;
  completing();
  at.callee.focus({ preventScroll: true });
}

/** completing shows what the input will be completed with. */
export function completing(): void {
  $("suffix").textContent = suffix(at.callee.value, domain);
}

export function registration(state: Registration, text: string): void {
  const been = document.body.dataset.registration;
  document.body.dataset.registration = state;
  $("registration-text").textContent = text;
  at.call.disabled = state !== "registered";
  $("callee-hint").textContent =
    state === "registered" ? `A name here, such as “bob”, a number, or a full address, such as sip:bob@${domain}.` : "You can call as soon as you are registered.";
  if (state !== been && document.body.dataset.call !== "active") say(text);
}

/** error shows words about what went wrong, or takes them away. */
export function error(text: string): void {
  $("error").textContent = text;
  $("alert").hidden = text === "";
}

/** call shows a call at its stage. */
export function call(state: CallState, c: Call | undefined): void {
  const body = document.body;
  const was = body.dataset.call;
  body.dataset.call = state;
  const idle = state === "idle" || state === "ended";
  const incoming = state === "incoming";
  $("dial").hidden = !idle;
  $("incoming").hidden = !incoming;
  $("talk").hidden = idle || incoming;
  $("path").hidden = state !== "active";
  document.title = incoming && c ? `${c.name} is calling` : idle || !c ? title : `${c.name} · ${title}`;
  const outcome = $("outcome");
  outcome.hidden = true;
  if (state !== "active") stopClock();

  if (incoming && c) {
    avatar($("incoming").querySelector(".avatar")!, c.name);
    $("incoming-title").textContent = `${c.name} is calling`;
    $("incoming-address").textContent = c.address;
    take($("incoming"));
    return;
  }
  if (!idle && c) {
    const talk = $("talk");
    avatar($("talk-avatar"), c.name);
    $("talk-avatar").dataset.ring = state === "active" ? "off" : "on";
    $("peer").textContent = c.name;
    $("peer-address").textContent = c.address;
    const progress = state === "ringing" ? "Ringing" : state === "active" ? "" : c.direction === "incoming" ? "Connecting" : "Calling";
    $("progress").textContent = progress;
    at.mute.hidden = state !== "active";
    mute(c.muted);
    if (state === "active" && was !== "active") {
      flow = { out: 0, in: 0 };
      path({ bytesIn: 0, bytesOut: 0, packetsIn: 0, packetsOut: 0, packetsLost: 0, energy: 0, samples: 0 });
      startClock(c);
      say(`Connected with ${c.name}`);
    } else if (state !== was) say(progress === "Ringing" ? `It rings at ${c.name}` : `${progress} ${c.name}`);
    if (was !== state && !talk.contains(document.activeElement)) take(talk);
    return;
  }
  if (state === "ended" && c?.outcome) {
    const { text, fault } = c.outcome;
    const length = c.answered ? ` The call lasted ${duration((c.ended - c.answered) / 1000)}.` : "";
    if (fault) error(text + length);
    else {
      outcome.textContent = text + length;
      outcome.hidden = false;
      say(outcome.textContent);
    }
    giveBack();
  }
}

/** interrupted tells that the sound is broken off for the moment. */
export function interrupted(yes: boolean): void {
  $("progress").textContent = yes ? "Sound interrupted, reconnecting" : "";
  $("timer").hidden = yes;
  if (yes) say("The sound is interrupted");
}

function mute(yes: boolean): void {
  at.mute.setAttribute("aria-pressed", String(yes));
  $("mute-text").textContent = yes ? "Muted" : "Mute";
  document.getElementById("mute-icon")!.setAttribute("href", yes ? "#i-mic-off" : "#i-mic");
}

/** path draws the way of the voice. Lines move while packets do. */
export function path(p: Path): void {
  const figure = $("path");
  figure.dataset.out = p.packetsOut > flow.out ? "on" : "off";
  figure.dataset.in = p.packetsIn > flow.in ? "on" : "off";
  flow = { out: p.packetsOut, in: p.packetsIn };
  hops(p).forEach((h, i) => hop(figure.querySelector(`[data-hop="${i + 1}"]`)!, h));
  write($("path-summary"), summary(p));
  const rows: [string, string][] = [
    ["Media encryption", p.srtp ? `${cipherName(p.srtp)} (${p.srtp})` : ""],
    ["Key agreement", [p.dtlsVersion, p.dtls].filter(Boolean).join(", ")],
    ["Relay", [p.local === "relay" ? "TURN" : (p.local ?? ""), p.relayProtocol ? `over ${p.relayProtocol.toUpperCase()}` : "", p.relayURL ?? ""].filter(Boolean).join(", ")],
    ["Behind the gateway", p.core ?? ""],
    ["Round trip", p.roundTrip === undefined ? "" : `${Math.round(p.roundTrip * 1000)} ms`],
    ["Sent", packets(p.packetsOut, p.bytesOut)],
    ["Received", packets(p.packetsIn, p.bytesIn) + (p.packetsLost > 0 ? `, ${p.packetsLost} lost` : "")],
  ];
  const dl = $("path-details");
  if (dl.children.length === 0) {
    for (const [name] of rows) {
      const row = document.createElement("div");
      const dt = document.createElement("dt");
      dt.textContent = name;
      row.append(dt, document.createElement("dd"));
      dl.append(row);
    }
  }
  rows.forEach(([, value], i) => write(dl.children[i]!.querySelector("dd")!, value || "–"));
}

function hop(li: HTMLElement, h: Hop): void {
  if (!li.firstChild) li.append(($<HTMLTemplateElement>("hop").content.cloneNode(true)));
  li.dataset.protection = h.protection;
  const icon = { pending: "#i-wait", sealed: "#i-lock", open: "#i-unlock", unknown: "#i-ask" }[h.protection];
  li.querySelector(".what use")!.setAttribute("href", icon);
  write(li.querySelector(".title")!, h.title);
  write(li.querySelector(".detail")!, h.detail.replace(/(?<=\w)-(?=\w)/g, "\u2011")); // names of ciphers stay on one line
}

function packets(n: number, bytes: number): string {
  const size = bytes < 10_000 ? `${bytes} B` : bytes < 10_000_000 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  return `${n} packets, ${size}`;
}

// write leaves the DOM alone where nothing changed, so that selections and screen readers stay undisturbed.
function write(e: Element, text: string): void {
  if (e.textContent !== text) e.textContent = text;
}

function avatar(e: Element, name: string): void {
  const letter = Array.from(name.replace(/^[^\p{L}\p{N}]+/u, ""))[0] ?? "·";
  e.textContent = letter.toLocaleUpperCase();
  let sum = 0;
  for (const c of name) sum = (sum + c.codePointAt(0)!) % 6;
  (e as HTMLElement).dataset.tint = String(sum);
}

function startClock(c: Call): void {
  const timer = $("timer");
  timer.hidden = false;
  const tick = () => (timer.textContent = duration((Date.now() - c.answered) / 1000));
  tick();
  clearInterval(clock);
  clock = window.setInterval(tick, 1000);
}

function stopClock(): void {
  clearInterval(clock);
  $("timer").hidden = true;
}

// take moves the focus to a card that came up, so that it is read out and no key answers by accident.
function take(card: HTMLElement): void {
  const now = document.activeElement;
  if (now && now !== document.body && !now.closest("#incoming, #talk")) before = now;
  card.focus({ preventScroll: true });
}

function giveBack(): void {
  const to = before instanceof HTMLElement && before.isConnected ? before : at.callee;
  before = null;
  (to === at.call || to === at.callee ? to : at.callee).focus({ preventScroll: true });
}

function say(text: string): void {
  write($("live"), text);
}
