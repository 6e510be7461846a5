// The page's elements and what they show. It holds no state of its own but the DOM's; every text that
// comes from outside goes in as text, never as markup.

import { suffix } from "./address.ts";
import { $, write } from "./dom.ts";
import type { Call, CallState, Registration } from "./phone.ts";
import * as picture from "./picture.ts";
import { duration } from "./words.ts";

const title = document.title;

export const at = {
  login: $<HTMLButtonElement>("login"),
  guest: $<HTMLButtonElement>("guest"),
  logout: $<HTMLButtonElement>("logout"),
  dial: $<HTMLFormElement>("dial"),
  field: $("field"),
  callee: $<HTMLInputElement>("callee"),
  call: $<HTMLButtonElement>("call"),
  videoCall: $<HTMLButtonElement>("video-call"),
  answer: $<HTMLButtonElement>("answer"),
  answerVideo: $<HTMLButtonElement>("answer-video"),
  decline: $<HTMLButtonElement>("decline"),
  hangup: $<HTMLButtonElement>("hangup"),
  mute: $<HTMLButtonElement>("mute"),
  camera: $<HTMLButtonElement>("camera"),
  dismiss: $<HTMLButtonElement>("dismiss"),
  remote: $<HTMLAudioElement>("remote"),
  remoteVideo: $<HTMLVideoElement>("remote-video"),
  localVideo: $<HTMLVideoElement>("local-video"),
};

/** Something that helps with an error: a button, or an address to open. */
export type Help = { label: string; run: () => void } | { label: string; href: string };

let domain = "";
let clock = 0; // the timer's interval
let noticeTimer = 0;
let before: Element | null = null; // what had the focus before a call took it
const noticeUnits = 12_000; // ms that a notice stays

/** landing shows the page of somebody who is not logged in. */
export function landing(): void {
  document.body.dataset.view = "landing";
  $("landing").hidden = false;
  $("phone").hidden = true;
  $("account").hidden = true;
  at.login.disabled = at.guest.disabled = false;
  write($("login-hint"), "You log in with your operator and come straight back here. This page stores no password and no key.");
  document.title = title;
}

/** guests shows or hides the door for guests. */
export function guests(yes: boolean): void {
  at.guest.hidden = !yes;
}

/** leaving tells that the way goes to the WAF, or back from it. */
export function leaving(text: string): void {
  at.login.disabled = at.guest.disabled = true;
  say(text);
  write($("login-hint"), text);
}

/** phone shows the telephone of somebody: a guest's says so. */
export function phone(home: string, guest: boolean): void {
  domain = home;
  document.body.dataset.view = "phone";
  $("landing").hidden = true;
  $("phone").hidden = false;
  $("account").hidden = false;
  write(at.logout, guest ? "Leave" : "Log out");
  completing();
  at.callee.focus({ preventScroll: true });
}

/** completing shows what the input will be completed with. */
export function completing(): void {
  write($("suffix"), suffix(at.callee.value, domain));
}

export function registration(state: Registration, text: string): void {
  const been = document.body.dataset.registration;
  document.body.dataset.registration = state;
  write($("registration-text"), text);
  at.call.disabled = at.videoCall.disabled = state !== "registered";
  write(
    $("callee-hint"),
    state === "registered" ? `A name here, such as “bob”, a number, or a full address, such as sip:bob@${domain}.` : "You can call as soon as you are registered.",
  );
  if (state !== been && document.body.dataset.call !== "active") say(text);
}

/** error shows words about what went wrong, with what helps; or takes them away. */
export function error(text: string, help?: Help): void {
  const [button, link] = [$<HTMLButtonElement>("error-help"), $<HTMLAnchorElement>("error-link")];
  $("error").textContent = text; // anew even when the same, so that it is read out again
  $("alert").hidden = text === "";
  button.hidden = !(help && "run" in help);
  link.hidden = !(help && "href" in help);
  if (help && "run" in help) {
    write(button, help.label);
    button.onclick = help.run;
  }
  if (help && "href" in help) {
    write(link, help.label);
    link.href = help.href;
  }
}

/** notice shows something to know, for a while, or until it is dismissed where it stays. */
export function notice(text: string, stays = false): void {
  clearTimeout(noticeTimer);
  write($("notice-text"), text);
  $("notice").hidden = text === "";
  if (text !== "") say(text); // a live region that was hidden is not read out everywhere
  if (text !== "" && !stays) noticeTimer = window.setTimeout(() => notice(""), noticeUnits);
}
$("notice-dismiss").onclick = () => notice("");

/** call shows a call at its stage. */
export function call(state: CallState, c: Call | undefined): void {
  const body = document.body;
  const was = body.dataset.call;
  body.dataset.call = state;
  const idle = state === "idle" || state === "ended";
  const incoming = state === "incoming";
  const active = state === "active";
  $("dial").hidden = !idle;
  $("incoming").hidden = !incoming;
  $("talk").hidden = idle || incoming;
  $("path").hidden = $("plots").hidden = !active;
  body.dataset.video = active && c?.video ? "on" : "off";
  document.title = incoming && c ? `${c.name} is calling` : idle || !c ? title : `${c.name} · ${title}`;
  const outcome = $("outcome");
  outcome.hidden = true;
  if (!active) stopClock();

  if (incoming && c) {
    avatar($("incoming").querySelector(".avatar")!, c.name);
    write($("incoming-title"), `${c.name} is calling`);
    write($("incoming-video"), c.video ? "with video" : "");
    write($("incoming-address"), c.address);
    at.answerVideo.hidden = !c.video;
    write($("answer-text"), c.video ? "Sound only" : "Answer");
    take($("incoming"));
    return;
  }
  if (!idle && c) {
    const talk = $("talk");
    avatar($("talk-avatar"), c.name);
    $("talk-avatar").dataset.ring = active ? "off" : "on";
    write($("peer"), c.name);
    write($("peer-address"), c.address);
    const progress = state === "ringing" ? "Ringing" : active ? "" : c.direction === "incoming" ? "Connecting" : "Calling";
    if (state !== was) write($("progress"), progress);
    at.mute.hidden = !active;
    at.camera.hidden = !active || !c.video;
    $("stage").hidden = !active || !c.video;
    mute(c.muted);
    camera(c.camera);
    if (active && was !== "active") {
      picture.begin(c.video);
      startClock(c);
      say(`Connected with ${c.name}`);
    } else if (state !== was) say(progress === "Ringing" ? `It rings at ${c.name}` : `${progress} ${c.name}`);
    if (was !== state && !talk.contains(document.activeElement)) take(talk);
    return;
  }
  $("stage").hidden = true;
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

/** own shows the own picture, mirrored as people know themselves; null while the camera is off. */
export function own(stream: MediaStream | null): void {
  at.localVideo.srcObject = stream;
  at.localVideo.hidden = stream === null;
}

/** interrupted tells that the media are broken off for the moment. */
export function interrupted(yes: boolean): void {
  const what = document.body.dataset.video === "on" ? "Sound and picture" : "Sound";
  write($("progress"), yes ? `${what} interrupted, reconnecting` : "");
  $("timer").hidden = yes;
  if (yes) say(`${what} interrupted`);
}

function mute(yes: boolean): void {
  at.mute.setAttribute("aria-pressed", String(yes));
  write($("mute-text"), yes ? "Muted" : "Mute");
  $("mute-icon").setAttribute("href", yes ? "#i-mic-off" : "#i-mic");
}

// camera: the button is pressed while the camera is on.
function camera(on: boolean): void {
  at.camera.setAttribute("aria-pressed", String(on));
  write($("camera-text"), on ? "Camera" : "Camera off");
  $("camera-icon").setAttribute("href", on ? "#i-camera" : "#i-camera-off");
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
  (to === at.call || to === at.videoCall || to === at.callee ? to : at.callee).focus({ preventScroll: true });
}

function say(text: string): void {
  write($("live"), text);
}
