// The telephone: registration and one call at a time over JsSIP, media through TURN only. It knows
// SIP and WebRTC, not the page: what happens is told through the Listener, in plain words.
//
// The offer or answer leaves at the first relay candidate. Browsers end gathering only after 40 s where
// UDP is blocked, so "complete" is never waited for; without any relay in 5 s the call ends in words.

import { UA, WebSocketInterface } from "jssip";
import type { EndEvent, IceCandidateEvent, IncomingEvent, OutgoingEvent, PeerConnectionEvent, RTCSession, RTCSessionEventMap, SDPEvent } from "jssip/lib/RTCSession";
import type { RTCSessionEvent } from "jssip/lib/UA";
import { person, plain } from "./address.ts";
import { LoginError, turn, type Config, type Login } from "./oauth.ts";
import { read, type Path } from "./path.ts";
import * as words from "./words.ts";

export type Registration = "none" | "connecting" | "registered" | "lost" | "refused";
export type CallState = "idle" | "calling" | "ringing" | "incoming" | "active" | "ended";

/** What the page is told. Each text is for a person. */
export interface Listener {
  registration(state: Registration, text: string): void;
  call(state: CallState, call: Call): void;
  /** The way of the voice changed or its counters grew; about once a second in a call. */
  path(path: Path): void;
  /** Sound is interrupted (true) or back (false). */
  interrupted(yes: boolean): void;
  /** The remote track is here and wants to be played. */
  sound(stream: MediaStream): void;
  /** The log-in no longer serves: the person has to log in again. */
  loggedOut(text: string): void;
}

/** One call, from the click or the INVITE to its end. */
export interface Call {
  direction: "outgoing" | "incoming";
  name: string;
  address: string;
  /** When it was answered and ended, ms of Date.now(); 0 before. */
  answered: number;
  ended: number;
  muted: boolean;
  /** Why it ended; fault is false where nothing went wrong. */
  outcome?: { text: string; fault: boolean };
}

const registerExpires = 600; // s; the edge lowers it to the token's life
const relayPatience = 5_000; // ms from the start of gathering to the first relay candidate
const audioPatience = 30_000; // ms after the click in which the first sound is looked for
const retryLeast = 5_000; // ms to the first REGISTER after a refusal that may pass, doubled up to
const retryMost = 60_000;

const microphone: MediaStreamConstraints = {
  audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  video: false,
};

// Live is a Call with what carries it.
interface Live extends Call {
  session?: RTCSession;
  pc?: RTCPeerConnection;
  stream?: MediaStream;
  remoteSDP: string;
  abort: AbortController;
  clicked: number; // performance.now() of the click on call or answer
  firstAudio: number | null;
  connected: boolean;
  broken: boolean;
  over: boolean;
  fault?: string; // words that go before what SIP says
  relayError?: number;
  timers: number[];
}

export class Phone {
  private ua: UA | undefined;
  private live: Live | undefined;
  private last: Live | undefined;
  private retry = 0;
  private retryTimer = 0;
  private stopping = false;

  constructor(
    private readonly config: Config,
    private readonly login: Login,
    private readonly tell: Listener,
  ) {}

  /** start opens the WebSocket and registers; both are repeated until stop. */
  start(): void {
    const ua = new UA({
      sockets: new WebSocketInterface(this.config.sip_url),
      uri: this.login.uri,
      display_name: this.login.name,
      authorization_jwt: `Bearer ${this.login.token}`,
      register: true,
      register_expires: registerExpires,
      session_timers: false, // the gateway's consent (RFC 7675) finds a dead call sooner
      no_answer_timeout: 60,
      connection_recovery_min_interval: 1,
      connection_recovery_max_interval: 10,
      user_agent: "wicgate WIC",
    });
    this.ua = ua;
    const who = person(this.login.uri, this.login.name).name;
    let been = false; // connected at least once
    ua.on("connecting", () => this.tell.registration(been ? "lost" : "connecting", been ? "Connection lost, reconnecting" : "Connecting"));
    ua.on("connected", () => {
      been = true;
      this.tell.registration("connecting", "Registering");
    });
    ua.on("disconnected", () => {
      clearTimeout(this.retryTimer);
      if (!this.stopping) this.tell.registration("lost", !navigator.onLine ? "You are offline" : been ? "Connection lost, reconnecting" : "Gateway not reached, trying again");
    });
    ua.on("registered", () => {
      this.retry = 0;
      this.tell.registration("registered", `Registered as ${who}`);
    });
    ua.on("unregistered", () => {
      if (!this.stopping && ua.isConnected()) this.tell.registration("connecting", "Registering");
    });
    ua.on("registrationExpiring", () => {
      if (Date.now() < this.login.expires) ua.register();
    });
    ua.on("registrationFailed", (e) => {
      if (!ua.isConnected()) return; // "disconnected" has told it
      const why = words.registration(e.response?.status_code, e.cause);
      this.tell.registration("refused", why.text);
      if (why.again === "login") {
        this.tell.loggedOut(`${why.text}.`);
        return;
      }
      this.retryTimer = window.setTimeout(() => ua.isConnected() && ua.register(), Math.min(retryLeast * 2 ** this.retry++, retryMost));
    });
    ua.on("newRTCSession", (e: RTCSessionEvent) => {
      if (String(e.originator) === "remote") this.incoming(e.session as RTCSession);
    });
    ua.start();
  }

  /** stop ends the call, takes the registration back and closes the WebSocket. */
  stop(): void {
    this.stopping = true;
    clearTimeout(this.retryTimer);
    this.hangup();
    this.ua?.stop();
    this.ua = undefined;
    this.tell.registration("none", "");
  }

  /** busy tells whether there is a call, at whatever stage. */
  get busy(): boolean {
    return this.live !== undefined;
  }

  pc(): RTCPeerConnection | null {
    return this.live?.pc ?? null;
  }

  /** firstAudio is ms from the click to the first received sound, of this call or the last. */
  firstAudio(): number | null {
    return (this.live ?? this.last)?.firstAudio ?? null;
  }

  /** path reads the way of the voice now; null without a call. */
  async path(): Promise<Path | null> {
    const call = this.live;
    if (!call?.pc) return null;
    return read((await call.pc.getStats()) as unknown as Iterable<[string, Record<string, unknown>]>, call.remoteSDP);
  }

  /** call rings uri. The click is now. */
  async call(uri: string): Promise<void> {
    if (this.live || !this.ua) return;
    const call = this.begin("outgoing", person(uri));
    call.clicked = performance.now();
    this.tell.call("calling", call);
    const ready = await this.prepare(call);
    if (!ready || call.over || !this.ua) return;
    try {
      call.session = this.ua.call(uri, { ...ready, eventHandlers: this.handlers(call) });
    } catch {
      this.finish(call, { text: "This address cannot be called from here.", fault: true });
    }
  }

  /** answer takes the incoming call. The click is now. */
  async answer(): Promise<void> {
    const call = this.live;
    if (!call?.session || call.direction !== "incoming" || call.clicked) return;
    call.clicked = performance.now();
    this.tell.call("calling", call);
    const ready = await this.prepare(call);
    if (!ready || call.over) return;
    try {
      call.session.answer(ready);
    } catch {
      call.fault = "The call could not be answered: the other side has gone.";
      this.end(call, 480);
    }
  }

  /** decline refuses the incoming call (603). */
  decline(): void {
    if (this.live?.direction === "incoming") this.end(this.live, 603);
  }

  /** hangup ends the call at whatever stage. */
  hangup(): void {
    if (this.live) this.end(this.live, this.live.direction === "incoming" && !this.live.answered ? 603 : undefined);
  }

  /** mute sends silence (true) or the microphone's sound. */
  mute(yes: boolean): void {
    const call = this.live;
    if (!call?.session) return;
    call.muted = yes;
    if (yes) call.session.mute({ audio: true });
    else call.session.unmute({ audio: true });
    this.tell.call("active", call);
  }

  private begin(direction: Call["direction"], who: { name: string; address: string }): Live {
    const call: Live = {
      direction,
      ...who,
      answered: 0,
      ended: 0,
      muted: false,
      remoteSDP: "",
      abort: new AbortController(),
      clicked: 0,
      firstAudio: null,
      connected: false,
      broken: false,
      over: false,
      timers: [],
    };
    this.live = call;
    return call;
  }

  private incoming(session: RTCSession): void {
    if (this.live) {
      session.terminate({ status_code: 486 });
      return;
    }
    const from = session.remote_identity;
    const call = this.begin("incoming", person(from.uri.toString(), from.display_name));
    call.session = session;
    const handlers = this.handlers(call);
    for (const name of Object.keys(handlers) as (keyof RTCSessionEventMap)[]) session.on(name, handlers[name]!);
    this.tell.call("incoming", call);
  }

  // prepare gets a fresh TURN token and the microphone, both at once. On failure the call ends in words.
  private async prepare(call: Live) {
    const mic = openMicrophone();
    const [servers, stream] = await Promise.allSettled([turn(this.config, this.login, call.abort.signal), mic]);
    if (stream.status === "fulfilled") {
      if (call.over) stream.value.getTracks().forEach((t) => t.stop());
      else call.stream = stream.value;
    }
    if (call.over) return null;
    if (stream.status === "rejected") {
      call.fault = words.microphone(stream.reason instanceof Error ? stream.reason.name : "");
      this.end(call, 480);
      return null;
    }
    if (servers.status === "rejected") {
      const e = servers.reason;
      const stale = e instanceof LoginError && /^invalid_(grant|token|request)$/.test(e.code);
      call.fault = stale ? "Your log-in has run out. Log in again, then call." : e instanceof LoginError ? e.message : "No pass for the relay could be had. Try again.";
      this.end(call, 480);
      return null;
    }
    const pcConfig: RTCConfiguration = {
      iceServers: servers.value,
      iceTransportPolicy: "relay",
      bundlePolicy: "balanced", // media multiplexing is not supported in IMS (TS 23.228 U.1): max-bundle refuses an offer without the group
      rtcpMuxPolicy: "require",
    };
    return { mediaStream: stream.value, mediaConstraints: { audio: true, video: false }, pcConfig };
  }

  private handlers(call: Live): Partial<RTCSessionEventMap> {
    return {
      peerconnection: (e: PeerConnectionEvent) => this.watch(call, e.peerconnection),
      icecandidate: (e: IceCandidateEvent) => {
        if (e.candidate.type !== "relay" && !/ typ relay /.test(e.candidate.candidate)) return;
        e.ready();
      },
      sdp: (e: SDPEvent) => {
        if (String(e.originator) === "remote") call.remoteSDP = e.sdp;
      },
      progress: (e: IncomingEvent | OutgoingEvent) => {
        const status = "response" in e ? e.response?.status_code : undefined;
        if (call.direction === "outgoing" && !call.answered && (status === 180 || status === 183)) this.tell.call("ringing", call);
      },
      accepted: () => {
        call.answered = Date.now();
        this.tell.call("active", call);
      },
      ended: (e: EndEvent) => this.over(call, e),
      failed: (e: EndEvent) => this.over(call, e),
    };
  }

  private watch(call: Live, pc: RTCPeerConnection): void {
    call.pc = pc;
    let relay = false;
    const noRelay = () => {
      if (relay || call.over) return;
      call.fault = words.relay(call.relayError);
      this.end(call, 480);
    };
    pc.addEventListener("icegatheringstatechange", () => {
      if (pc.iceGatheringState === "gathering") call.timers.push(window.setTimeout(noRelay, relayPatience));
      if (pc.iceGatheringState === "complete") noRelay();
    });
    // These come before JsSIP's own listeners, which would send an offer without any way to answer it.
    pc.addEventListener("icecandidate", (e) => {
      if (e.candidate && (e.candidate.type === "relay" || / typ relay /.test(e.candidate.candidate))) relay = true;
      else if (!e.candidate) noRelay();
    });
    pc.addEventListener("icecandidateerror", (e) => {
      const code = (e as RTCPeerConnectionIceErrorEvent).errorCode;
      if (call.relayError === undefined || code < 700) call.relayError = code; // 701: not reached
    });
    pc.addEventListener("track", (e) => this.tell.sound(e.streams[0] ?? new MediaStream([e.track])));
    pc.addEventListener("connectionstatechange", () => {
      if (pc.connectionState === "connected") call.connected = true;
      const broken = pc.connectionState === "disconnected" || pc.connectionState === "failed";
      if (!call.answered || call.over || broken === call.broken) return;
      call.broken = broken;
      this.tell.interrupted(broken);
    });
    call.timers.push(window.setInterval(() => void this.report(call), 1000));
    const until = performance.now() + audioPatience;
    const look = async () => {
      if (call.over || call.firstAudio !== null || performance.now() > until) return;
      const stats = await pc.getStats().catch(() => undefined);
      stats?.forEach((s: Record<string, unknown>) => {
        if (s.type === "inbound-rtp" && typeof s.totalAudioEnergy === "number" && s.totalAudioEnergy > 0) call.firstAudio ??= performance.now() - call.clicked;
      });
      call.timers.push(window.setTimeout(look, 50)); // getStats answers from a cache of 50 ms
    };
    void look();
  }

  private async report(call: Live): Promise<void> {
    if (call.over || !call.answered || !call.pc) return;
    const stats = await call.pc.getStats().catch(() => undefined);
    if (stats && !call.over) this.tell.path(read(stats as unknown as Iterable<[string, Record<string, unknown>]>, call.remoteSDP));
  }

  // end terminates the call's session, if there is one yet, and so the call.
  private end(call: Live, status?: number): void {
    call.abort.abort();
    if (call.session && !call.session.isEnded()) {
      try {
        call.session.terminate(status === undefined ? {} : { status_code: status });
      } catch {
        // Ended in between: its event has come or comes.
      }
    }
    if (!call.over) this.finish(call, call.fault ? { text: call.fault, fault: true } : words.ending({ ...cause(call), connected: call.connected, name: call.name }));
  }

  private over(call: Live, e: EndEvent): void {
    if (call.over) return;
    const message = e.message as unknown as { status_code?: number; reason_phrase?: string; getHeader?(name: string): string | undefined } | null;
    const status = typeof message?.status_code === "number" ? message.status_code : undefined;
    const phrase = status !== undefined && typeof message?.reason_phrase === "string" ? message.reason_phrase : undefined;
    const reason = typeof message?.getHeader === "function" ? message.getHeader("reason") : undefined;
    this.finish(
      call,
      call.fault
        ? { text: call.fault, fault: true }
        : words.ending({
            cause: e.cause,
            originator: String(e.originator),
            ...(status === undefined ? {} : { status }),
            ...(phrase === undefined ? {} : { phrase }),
            ...(reason === undefined ? {} : { reason: plain(reason, 200) }),
            connected: call.connected,
            name: call.name,
          }),
    );
    if (status === 401 || status === 407) this.tell.loggedOut(words.status(401, call.name));
  }

  private finish(call: Live, outcome: { text: string; fault: boolean }): void {
    if (call.over) return;
    call.over = true;
    call.abort.abort();
    call.ended = Date.now();
    call.outcome = outcome;
    for (const t of call.timers) clearTimeout(t); // clears intervals as well
    call.stream?.getTracks().forEach((t) => t.stop());
    this.last = call;
    if (this.live === call) this.live = undefined;
    this.tell.call("ended", call);
  }
}

// cause is how JsSIP would name an end that came before there was a session.
function cause(call: Live): { cause: string; originator: string } {
  return { cause: call.answered ? "Terminated" : call.direction === "outgoing" ? "Canceled" : "Rejected", originator: "local" };
}

function openMicrophone(): Promise<MediaStream> {
  const devices = navigator.mediaDevices as MediaDevices | undefined;
  if (!devices) return Promise.reject(new DOMException("insecure page", "SecurityError"));
  return devices.getUserMedia(microphone);
}
