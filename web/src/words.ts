// Failures in plain words: what happened, and what to do next. Pure: no DOM, no network.

/** How a call came to its end, as the SIP stack and the page know it. */
export interface Ending {
  /** JsSIP's cause, such as "Busy" or "Request Timeout". */
  cause?: string;
  /** "local", "remote" or "system". */
  originator?: string;
  /** Status of the final SIP response. */
  status?: number;
  /** Its reason phrase. */
  phrase?: string;
  /** Value of the Reason header (RFC 3326) of a BYE, CANCEL or response. */
  reason?: string;
  /** Whether sound had a way once. */
  connected: boolean;
  /** The other side, as a person reads it. */
  name: string;
}

/** ending says why a call ended or failed. fault is false where nothing went wrong. */
export function ending(e: Ending): { text: string; fault: boolean } {
  const who = e.name;
  if (e.originator !== "local") {
    const known = edgeWords(e.reason, who) ?? edgeWords(e.phrase, who);
    if (known) return { text: known, fault: true };
  }
  switch (e.cause) {
    case "Terminated":
      if (e.originator !== "remote") return { text: "You hung up.", fault: false };
      if (/^\s*SIP\s*;.*\bcause\s*=\s*[4-6]\d\d\b/i.test(e.reason ?? "")) return { text: "The network ended the call.", fault: true };
      return { text: `${who} hung up.`, fault: false };
    case "Canceled":
      if (e.originator === "local") return { text: "You hung up before it was answered.", fault: false };
      if (/cause\s*=\s*200\b|elsewhere/i.test(e.reason ?? "")) return { text: "The call was answered on another device.", fault: false };
      return { text: `${who} gave up before you answered.`, fault: false };
    case "No Answer":
    case "Expires":
      return { text: "The call rang until it ended by itself.", fault: false };
    case "Connection Error":
      return { text: "The connection to the network broke during the call set-up. Try again once you are registered.", fault: true };
    case "RTP Timeout":
      return { text: e.connected ? "The sound broke off: the way through the relay to the gateway was lost." : "No way for the sound was found through the relay to the gateway.", fault: true };
    case "User Denied Media Access":
      return { text: device("microphone", "NotAllowedError"), fault: true };
    case "WebRTC Error":
    case "Bad Media Description":
    case "Incompatible SDP":
    case "Missing SDP":
      return { text: "This browser and the gateway could not agree on how to carry the sound.", fault: true };
    case "No ACK":
    case "Dialog Error":
      return { text: "The network lost track of the call.", fault: true };
  }
  if (e.originator === "local" && e.status === undefined && e.cause === "Rejected") return { text: `You declined ${who}’s call.`, fault: false };
  if (e.status !== undefined) return { text: status(e.status, who), fault: true };
  if (e.cause === "Request Timeout") return { text: "The network gave no answer in time. Try again in a moment.", fault: true };
  return { text: "The call failed inside this page. Try again; if it stays so, reload the page.", fault: true };
}

/** status is a final SIP response to a call (RFC 3261 §21) in plain words. */
export function status(code: number, who: string): string {
  switch (code) {
    case 401:
    case 407:
      return "Your log-in is no longer accepted. Log in again.";
    case 403:
      return `The network does not allow you to call ${who}.`;
    case 404:
    case 604:
      return `${who} is not known to the network. Check the spelling.`;
    case 408:
      return `${who} did not answer in time.`;
    case 410:
      return `${who} is no longer to be reached here.`;
    case 480:
    case 430:
      return `${who} is not to be reached: not logged in, or not at the phone.`;
    case 484:
      return "That address or number is incomplete.";
    case 486:
    case 600:
      return `${who} is busy in another call.`;
    case 487:
      return "The call was given up.";
    case 415:
    case 488:
    case 606:
      return "The two sides could not agree on how to carry the sound.";
    case 429:
      return "Too many calls in a short time. Wait a moment, then try again.";
    case 502:
    case 503:
      return "The gateway takes no calls at the moment. Try again in a little while.";
    case 504:
      return "A part of the network gave no answer. Try again in a little while.";
    case 603:
      return `${who} declined the call.`;
  }
  if (code >= 300 && code < 400) return `${who} has moved to another address, which this page does not follow.`;
  if (code >= 500 && code < 600) return `The network has a fault (${code}). Try again in a little while.`;
  return `The network refused the call (${code}).`;
}

// edgeWords knows the phrases with which wicgate's edge itself ends a call, as Reason or as the status line's phrase.
function edgeWords(phrase: string | undefined, name: string): string | undefined {
  const p = (phrase ?? "").toLowerCase();
  if (/media lost|consent/.test(p)) return "The sound broke off: the gateway no longer hears this browser or the other one.";
  if (/encryption failed|dtls|fingerprint/.test(p)) return "The encryption between browser and gateway could not be set up, so the call was ended.";
  if (/no media path|\bice\b/.test(p)) return "No way for the sound was found through the relay to the gateway.";
  if (/flow failed/.test(p)) return `${name} lost the connection to the network.`;
  if (/core (connection lost|cannot be reached)/.test(p)) return "The gateway lost its connection to the operator’s network.";
  if (/shutting down/.test(p)) return "The gateway is being restarted. Try again in a little while.";
  if (/deregistered|registration ended/.test(p)) return "A registration ended, and the call with it.";
  if (/guest/.test(p)) return guestCall(p, name);
  if (/revo[ck]/.test(p)) return "A log-in was ended by the operator, and this call with it.";
  if (/ended by the operator/.test(p)) return "The call was ended by the operator.";
  if (/logged out/.test(p)) return `${name} logged out, and the call ended.`;
  if (/log-?in (replaced|expired)|session (replaced|expired)/.test(p)) return "A log-in ended, and this call with it.";
  return undefined;
}

// guestCall knows the phrases of the edge's policy for guests.
function guestCall(phrase: string, name: string): string {
  if (/destination/.test(phrase)) return `Guests may not call ${name}. Log in to call more people.`;
  if (/too many/.test(phrase)) return "Guests may make only a few calls at a time. Wait a moment, then try again.";
  if (/longest|duration/.test(phrase)) return "The call reached the longest time that guests may talk.";
  return "The operator’s rules for guests do not allow this call.";
}

/** ended says why the edge closed the WebSocket of a log-in that is over (close code 1008); undefined for other reasons. */
export function ended(reason: string | undefined): string | undefined {
  const p = (reason ?? "").toLowerCase();
  if (/revo[ck]|ended by the operator/.test(p)) return "Your log-in was ended by the operator. Ask them why, or log in again.";
  if (/logged out/.test(p)) return "You were logged out, here or in another window.";
  if (/replaced/.test(p)) return "Your log-in was ended because you logged in elsewhere.";
  if (/expired/.test(p)) return runOut;
  return undefined;
}

/** Words for a log-in that was not renewed in time, and for one that the WAF no longer renews. */
export const runOut = "Your log-in has run out.";
export const sessionEnded = "Your session has ended.";

/** guest says why the portal lets no guest in, by the answer's status and OAuth code. */
export function guest(status: number, code: string): string {
  if (status === 429) return "Too many guests came from your network at once. Wait a minute, then try again.";
  if (code === "temporarily_unavailable") return "All places for guests are taken. Try again in a little while, or log in.";
  if (status === 403 || status === 404 || status === 405) return "This portal takes no guests. Log in instead.";
  return "Joining as a guest failed. Try again in a little while, or log in.";
}

/** unreachable says that an HTTPS service gave no answer: the browser does not tell a page why. */
export function unreachable(url: URL, online: boolean): string {
  if (!online) return "This computer is offline. Connect to a network, then try again.";
  return `The log-in service at ${url.host} is not to be reached. Check your connection; if that is fine, this browser may not trust the service’s certificate.`;
}

/** gateway says that the WebSocket never came up; the browser tells a page no more than code 1006. */
export function gateway(url: string): { text: string; link: string } {
  const u = new URL(url);
  return {
    text: `The gateway at ${u.host} is not to be reached. It may be down, a firewall may be in the way, or this browser does not trust its certificate: open its address and see what the browser says. This page keeps trying.`,
    link: `https://${u.host}/`,
  };
}

/** busy tells of somebody who called in the middle of a call. */
export function busy(name: string): string {
  return `${name} tried to call you and was told that you are busy.`;
}

/** registration says why the network refuses to register this page. */
export function registration(code: number | undefined, cause: string | undefined): { text: string; again: "login" | "retry" } {
  switch (code) {
    case 401:
    case 407:
      return { text: "Refused: your log-in is no longer accepted", again: "login" };
    case 403:
      return { text: "Refused: this log-in may not use that address", again: "login" };
    case 404:
      return { text: "Refused: the network does not know your address", again: "login" };
  }
  if (code !== undefined && code >= 500) return { text: `Refused: the network has a fault (${code}), trying again`, again: "retry" };
  if (code !== undefined) return { text: `Refused by the network (${code}), trying again`, again: "retry" };
  if (cause === "Request Timeout") return { text: "The network gives no answer, trying again", again: "retry" };
  return { text: "Connection lost, reconnecting", again: "retry" };
}

/** device says why the browser gave none, by the name of getUserMedia's DOMException. */
export function device(what: "microphone" | "camera", error: string): string {
  const again = what === "microphone" ? "then call again" : "then try again";
  switch (error) {
    case "NotAllowedError":
    case "SecurityError":
      return `This page may not use the ${what}. Allow it beside the address bar, ${again}.`;
    case "NotFoundError":
    case "OverconstrainedError":
      return `No ${what} was found. Plug one in, ${again}.`;
    case "NotReadableError":
    case "AbortError":
      return `The ${what} is in use by another program, or the system keeps it back. Free it, ${again}.`;
  }
  return `The ${what} could not be opened.`;
}

/** relay says why no way through the TURN server was found. code is icecandidateerror's (RFC 8656 §18). */
export function relay(code: number | undefined): string {
  switch (code) {
    case 401:
    case 403:
    case 441:
      return "The relay refused the credential for this call. Try again; if it stays so, the operator has to see that relay and log-in service belong together.";
    case 486:
      return "You have too many calls at the relay. Wait a minute, then try again.";
    case 508:
      return "The relay is full. Try again in a little while.";
  }
  return "The relay that carries the sound is not to be reached from here. A firewall may be in the way.";
}

/** login says what an OAuth error code (RFC 6749 §4.1.2.1, §5.2) means for the person. */
export function login(code: string): string {
  switch (code) {
    case "access_denied":
      return "The log-in was given up, or not allowed.";
    case "login_required":
    case "interaction_required":
      return "Your session has ended. Log in again.";
    case "invalid_grant":
      return "This log-in took too long, or was used already. Log in again.";
    case "temporarily_unavailable":
    case "server_error":
      return "The log-in service has a fault. Try again in a little while.";
    case "invalid_client":
    case "unauthorized_client":
    case "invalid_scope":
    case "invalid_request":
    case "unsupported_response_type":
      return "The log-in service does not know this page. That is for the operator to set right.";
  }
  return "The log-in failed. Try again.";
}

/** duration writes whole seconds as 0:07, 12:30 or 1:02:03. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n: number) => String(n).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

/** span writes a length of time in one unit, rounded down: 45 s, 12 min, 3 h, 2 days. */
export function span(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 90) return `${s} s`;
  if (s < 90 * 60) return `${Math.floor(s / 60)} min`;
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} days`;
}
