// The WIC's page: brings log-in, telephone and view together.
//
// What a test or a curious person may look at stands in window.wicgate and in data attributes of the
// body: data-view, data-registration, data-call, data-video. No log-in token is reachable from there; the
// relay's credential is, as part of any RTCPeerConnection's configuration.

import { complete, same } from "./address.ts";
import * as clock from "./clock.ts";
import { choice, type Kind } from "./devices.ts";
import { comeBack, guest, isAnswer, leave, LoginError, reach, revoke, type Config, type Login } from "./oauth.ts";
import { Phone, type Listener } from "./phone.ts";
import * as picture from "./picture.ts";
import { Renewal } from "./renewal.ts";
import * as settings from "./settings.ts";
import * as sound from "./sound.ts";
import * as view from "./view.ts";

const { at } = view;
const restUnits = 6_000; // ms that "ended" stays before it is "idle"

let phone: Phone | undefined;
let renewal: Renewal | undefined;
let known: Config | undefined; // the portal's last answer
let rest = 0;
let lifeTimer = 0;
let lapsed = ""; // why the log-in no longer serves, told once the call is over

/** config asks the portal which WAF to use. */
async function config(): Promise<Config> {
  const r = await reach("/config.json", {}).catch(() => undefined);
  if (r?.ok) {
    known = (await r.json()) as Config;
    view.guests(known.guests === true);
    return known;
  }
  const body = (await r?.json().catch(() => undefined)) as { message?: unknown } | undefined;
  throw new LoginError(
    typeof body?.message === "string"
      ? body.message
      : navigator.onLine
        ? "The portal is not to be reached. Check your connection, then try again."
        : "This computer is offline. Connect to a network, then try again.",
    "unreachable",
  );
}

// explain puts a failure into words, with the clock as its cause where that is wrong.
function explain(e: unknown): string {
  if (!(e instanceof LoginError)) return "Something in this page failed. Reload it, then try again.";
  return [e.message, clock.words()].filter(Boolean).join(" ");
}

async function login(silent = false): Promise<void> {
  view.error("");
  view.leaving("Taking you to your operator’s log-in …");
  try {
    await leave(await config(), silent);
  } catch (e) {
    view.landing();
    view.error(explain(e));
  }
}

async function join(): Promise<void> {
  view.error("");
  view.leaving("Letting you in as a guest …");
  try {
    const c = await config();
    enter(c, await guest());
  } catch (e) {
    view.landing();
    view.error(explain(e));
    at.guest.focus();
  }
}

async function open(): Promise<void> {
  const search = location.search;
  if (!isAnswer(search)) {
    view.landing();
    // A reload of somebody who was logged in: the WAF's session lets them in again without a question.
    if ((history.state as { again?: unknown } | null)?.again === true) {
      history.replaceState(null, "");
      return login(true);
    }
    await config().catch(() => {}); // whether guests are let in; who logs in is told what fails
    warnOfClock();
    return;
  }
  history.replaceState(null, "", "/"); // the code leaves the address bar, the history and the Referer
  view.leaving("Logging you in …");
  try {
    const c = await config();
    enter(c, await comeBack(c, search));
  } catch (e) {
    view.landing();
    view.error(explain(e));
  }
}

function warnOfClock(): void {
  const text = clock.words();
  if (text) view.notice(text, true);
}

function enter(c: Config, who: Login): void {
  const tell: Listener = {
    registration(state, text) {
      view.registration(state, text);
      if (state === "registered" && gatewayTold) {
        gatewayTold = false;
        view.error("");
      }
    },
    call(state, call) {
      clearTimeout(rest);
      if (state === "incoming") settings.close();
      view.call(state, call);
      if (state === "incoming") sound.bell();
      else if (state === "ringing") sound.ringing();
      else sound.hush();
      if (state === "active") void settings.refresh(); // names and ids are known from now on
      if (state === "ended") {
        at.remote.srcObject = at.remoteVideo.srcObject = null;
        if (call.outcome?.withoutVideo) {
          view.error(call.outcome.text, { label: "Call with sound only", run: () => dial(false) });
        }
        rest = window.setTimeout(() => {
          if (document.body.dataset.call === "ended") document.body.dataset.call = "idle";
        }, restUnits);
        if (lapsed) out(lapsed);
      }
      lives();
    },
    path: (p) => picture.show(p, document.body.dataset.video === "on", performance.now()),
    interrupted: view.interrupted,
    remote(kind, stream) {
      const e = kind === "video" ? at.remoteVideo : at.remote;
      e.srcObject = stream;
      if (kind === "audio") at.remote.muted = false;
      e.play().catch((err: unknown) => {
        if (!(err instanceof DOMException) || err.name !== "NotAllowedError") return; // AbortError: the call ended first
        view.error("The browser holds the sound back. Click anywhere to hear the other side.");
        addEventListener("pointerdown", () => void e.play().then(() => view.error("")), { once: true });
      });
    },
    own: view.own,
    trouble(text, link) {
      gatewayTold = link !== undefined;
      view.error(text, link === undefined ? undefined : { label: "Open its address", href: link });
    },
    notice: (text) => view.notice(text),
    stale: () => void renewal?.renew().catch(() => {}),
    loggedOut(text, atOnce) {
      if (phone?.busy && !atOnce) lapsed = text; // the call may go on
      else out(text);
    },
  };
  let gatewayTold = false; // #error tells of the gateway
  history.replaceState(who.guest ? null : { again: true }, "");
  renewal = new Renewal(c, who, {
    renewed: (next) => phone?.renewed(next) ?? Promise.resolve(),
    ended: (text) => tell.loggedOut(text, false),
  });
  phone = new Phone(c, who, tell);
  view.phone(c.domain, who.guest);
  view.call("idle", undefined);
  view.registration("connecting", "Connecting");
  warnOfClock();
  void settings.refresh();
  void useSpeaker();
  phone.start();
  lifeTimer = window.setInterval(lives, 1000);
  lives();

  dial = (video) => {
    if (!phone || phone.busy || document.body.dataset.registration !== "registered") return;
    view.error("");
    const to = complete(at.callee.value, c.domain);
    if (to.error !== undefined) {
      view.error(to.error);
      at.callee.focus();
      return;
    }
    if (same(to.uri, who.uri)) {
      view.error("That is your own address.");
      at.callee.focus();
      return;
    }
    void phone.call(to.uri, video);
  };
}

let dial: (video: boolean) => void = () => {};

function lives(): void {
  picture.lives(renewal?.life, phone?.relayLife);
}

/** out is the way back to the landing for somebody whose log-in no longer serves. */
function out(text: string): void {
  const guest = renewal?.current.guest === true;
  away();
  view.landing();
  view.error(/log in again/i.test(text) ? text : `${text} ${guest ? "Join again" : "Log in again"} to go on.`);
  (guest ? at.guest : at.login).focus();
}

function away(): void {
  clearInterval(lifeTimer);
  clearTimeout(rest);
  lapsed = "";
  renewal?.stop();
  renewal = undefined;
  const p = phone;
  phone = undefined;
  p?.stop();
  settings.close();
  picture.lives(undefined, undefined);
  view.notice("");
  document.body.dataset.call = "idle";
  document.body.dataset.video = "off";
  history.replaceState(null, "");
}

async function useSpeaker(): Promise<void> {
  const e = at.remote as HTMLAudioElement & { setSinkId?(id: string): Promise<void> };
  await e.setSinkId?.(choice.speaker).catch(() => view.notice("That speaker could not be used, so the sound stays where it was."));
}

at.login.onclick = () => void login();
at.guest.onclick = () => void join();
at.logout.onclick = async () => {
  const who = renewal?.current;
  away();
  view.landing();
  at.login.focus();
  if (who && known) revoke(known, who);
  if (who?.guest) return;
  // The WAF's session ends too, where it offers that; else the next log-in would pass without a question.
  const c = await config().catch(() => undefined);
  if (c?.end_session_endpoint) {
    const u = new URL(c.end_session_endpoint);
    u.searchParams.set("client_id", c.client_id);
    u.searchParams.set("post_logout_redirect_uri", location.origin + "/");
    location.assign(u);
  }
};
at.dial.onsubmit = (e) => {
  e.preventDefault();
  dial(false);
};
at.videoCall.onclick = () => dial(true);
at.field.onclick = () => at.callee.focus();
at.callee.oninput = () => {
  view.completing();
  view.error("");
};
at.answer.onclick = () => {
  view.error("");
  void phone?.answer(false);
};
at.answerVideo.onclick = () => {
  view.error("");
  void phone?.answer(true);
};
at.decline.onclick = () => phone?.decline();
at.hangup.onclick = () => phone?.hangup();
at.mute.onclick = () => phone?.mute(at.mute.getAttribute("aria-pressed") !== "true");
at.camera.onclick = () => void phone?.camera(at.camera.getAttribute("aria-pressed") !== "true");
at.dismiss.onclick = () => view.error("");
settings.begin(
  (kind: Kind) => void (kind === "speaker" ? useSpeaker() : phone?.use(kind)),
  () => void phone?.replugged(),
);
addEventListener("pointerdown", sound.unlock);
addEventListener("keydown", sound.unlock);
addEventListener("online", () => renewal?.check());
addEventListener("visibilitychange", () => renewal?.check());
addEventListener("pagehide", () => {
  // A guest's place is given back; a log-in's session lasts for a reload.
  const who = renewal?.current;
  if (who?.guest && known) revoke(known, who);
  const again: unknown = history.state;
  away();
  history.replaceState(again, "");
});
addEventListener("pageshow", (e) => {
  if (e.persisted) location.reload(); // a page out of the back-forward cache has no connection any more
});

/** What tests drive the page by. */
interface Hooks {
  pc(): RTCPeerConnection | null;
  /** ms from the click on call (or answer) to the first received sound; null while there is none. */
  firstAudio(): number | null;
  /** The same to the first decoded frame. */
  firstVideo(): number | null;
  /** The way of the media and its counters (path.ts); null without a call. */
  stats(): Promise<object | null>;
  /** Renews token, registration and, in a call, the relay credential with an ICE restart; rejects where one fails. */
  renew(): Promise<void>;
  /** ICE restarts after which the media moved. */
  restarts(): number;
  /** When the credentials end, ms of Date.now(); null where there is none. */
  credentials(): { sip_expires: number | null; turn_expires: number | null };
}

declare global {
  interface Window {
    wicgate: Hooks;
  }
}

window.wicgate = {
  pc: () => phone?.pc() ?? null,
  firstAudio: () => phone?.firstAudio() ?? null,
  firstVideo: () => phone?.firstVideo() ?? null,
  stats: async () => (await phone?.path()) ?? null,
  async renew() {
    await renewal?.renew();
    await phone?.renewRelay();
  },
  restarts: () => phone?.restarts ?? 0,
  credentials: () => ({ sip_expires: renewal?.life.end() ?? null, turn_expires: phone?.relayLife?.end() ?? null }),
};

void open();
