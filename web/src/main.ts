// The WIC's page: brings log-in, telephone and view together.
//
// What a test or a curious person may look at stands in window.wicgate and in data attributes of the
// body: data-view, data-registration, data-call. No token is reachable from there.

import { complete, same } from "./address.ts";
import { comeBack, isAnswer, leave, LoginError, type Config, type Login } from "./oauth.ts";
import { Phone, type Listener } from "./phone.ts";
import * as sound from "./sound.ts";
import * as view from "./view.ts";

const { at } = view;
const restUnits = 6_000; // ms that "ended" stays before it is "idle"
const renewEarly = 60_000; // ms before its end at which a log-in is renewed by the WAF's session, or a tenth of its life if that is less

let phone: Phone | undefined;
let rest = 0;
let renewTimer = 0;
let renewDue = false;
let lapsed = ""; // why the log-in no longer serves, told once the call is over

/** config asks the portal which WAF to use, and again until it knows. */
async function config(): Promise<Config> {
  const r = await fetch("/config.json", { cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(10_000) }).catch(() => undefined);
  if (r?.ok) return (await r.json()) as Config;
  const body = (await r?.json().catch(() => undefined)) as { message?: unknown } | undefined;
  throw new LoginError(typeof body?.message === "string" ? body.message : "The portal is not to be reached. Check your connection, then try again.", "unreachable");
}

function explain(e: unknown): string {
  return e instanceof LoginError ? e.message : "Something in this page failed. Reload it, then try again.";
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

async function open(): Promise<void> {
  const search = location.search;
  if (!isAnswer(search)) {
    view.landing();
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

function enter(c: Config, who: Login): void {
  const tell: Listener = {
    registration: view.registration,
    call(state, call) {
      clearTimeout(rest);
      view.call(state, call);
      if (state === "incoming") sound.bell();
      else if (state === "ringing") sound.ringing();
      else sound.hush();
      if (state === "ended") {
        at.remote.srcObject = null;
        rest = window.setTimeout(() => {
          if (document.body.dataset.call === "ended") document.body.dataset.call = "idle";
        }, restUnits);
        if (lapsed) out(lapsed);
        else if (renewDue) void login(true);
      }
    },
    path: view.path,
    interrupted: view.interrupted,
    sound(stream) {
      at.remote.srcObject = stream;
      at.remote.muted = false;
      at.remote.play().catch((e: unknown) => {
        if (!(e instanceof DOMException) || e.name !== "NotAllowedError") return; // AbortError: the call ended first
        view.error("The browser holds the sound back. Click anywhere to hear the other side.");
        addEventListener("pointerdown", () => void at.remote.play().then(() => view.error("")), { once: true });
      });
    },
    loggedOut(text) {
      if (phone?.busy) lapsed = text; // the call may go on
      else out(text);
    },
  };
  phone = new Phone(c, who, tell);
  view.phone(c.domain);
  view.call("idle", undefined);
  view.registration("connecting", "Connecting");
  phone.start();

  const life = who.expires - Date.now();
  renewTimer = window.setTimeout(
    () => {
      renewDue = true;
      if (!phone?.busy) void login(true);
    },
    Math.min(life - Math.min(renewEarly, life / 10), 2 ** 31 - 1),
  );

  at.dial.onsubmit = (e) => {
    e.preventDefault();
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
    void phone.call(to.uri);
  };
}

/** out is the way back to the landing for somebody whose log-in no longer serves. */
function out(text: string): void {
  away();
  view.landing();
  view.error(/Log in again/.test(text) ? text : `${text} Log in again to go on.`);
}

function away(): void {
  clearTimeout(renewTimer);
  clearTimeout(rest);
  renewDue = false;
  lapsed = "";
  const p = phone;
  phone = undefined;
  p?.stop();
  document.body.dataset.call = "idle";
}

at.login.onclick = () => void login();
at.logout.onclick = async () => {
  away();
  view.landing();
  // The WAF's session ends too, where it offers that; else the next log-in would pass without a question.
  const c = await config().catch(() => undefined);
  if (c?.end_session_endpoint) {
    const u = new URL(c.end_session_endpoint);
    u.searchParams.set("client_id", c.client_id);
    u.searchParams.set("post_logout_redirect_uri", location.origin + "/");
    location.assign(u);
  }
};
at.field.onclick = () => at.callee.focus();
at.callee.oninput = () => {
  view.completing();
  view.error("");
};
at.answer.onclick = () => {
  view.error("");
  void phone?.answer();
};
at.decline.onclick = () => phone?.decline();
at.hangup.onclick = () => phone?.hangup();
at.mute.onclick = () => phone?.mute(at.mute.getAttribute("aria-pressed") !== "true");
at.dismiss.onclick = () => view.error("");
addEventListener("pointerdown", sound.unlock);
addEventListener("keydown", sound.unlock);
addEventListener("pagehide", away);
addEventListener("pageshow", (e) => {
  if (e.persisted) location.reload(); // a page out of the back-forward cache has no connection any more
});

/** What tests drive the page by. */
interface Hooks {
  pc(): RTCPeerConnection | null;
  /** ms from the click on call (or answer) to the first received sound; null while there is none. */
  firstAudio(): number | null;
  /** The way of the voice and its counters (path.ts); null without a call. */
  stats(): Promise<object | null>;
}

declare global {
  interface Window {
    wicgate: Hooks;
  }
}

window.wicgate = {
  pc: () => phone?.pc() ?? null,
  firstAudio: () => phone?.firstAudio() ?? null,
  stats: async () => (await phone?.path()) ?? null,
};

void open();
