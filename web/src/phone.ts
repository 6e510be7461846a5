// The telephone: registration and one call at a time over JsSIP, media through TURN only. It knows
// SIP and WebRTC, not the page: what happens is told through the Listener, in plain words.
//
// The offer or answer leaves when each of its lines has a relay candidate. Browsers end gathering only after
// 40 s where UDP is blocked, so "complete" is never waited for; without a relay in 5 s the call ends in words.

import { UA, WebSocketInterface } from "jssip";
import type { EndEvent, IceCandidateEvent, IncomingEvent, OutgoingEvent, PeerConnectionEvent, ReInviteEvent, RTCSession, RTCSessionEventMap, SDPEvent } from "jssip/lib/RTCSession";
import type { RTCSessionEvent } from "jssip/lib/UA";
import { person, plain } from "./address.ts";
import * as clock from "./clock.ts";
import { Life, now } from "./life.ts";
import { blank, MediaError, open, openOne } from "./media.ts";
import { LoginError, turn, type Config, type Login, type Relay } from "./oauth.ts";
import { read, type Path, type Report } from "./path.ts";
import { restart, RestartError } from "./restart.ts";
import * as sdp from "./sdp.ts";
import * as turncredential from "./turncredential.ts";
import { Wire } from "./wire.ts";
import * as words from "./words.ts";

export type Registration = "none" | "connecting" | "registered" | "lost" | "refused";
export type CallState = "idle" | "calling" | "ringing" | "incoming" | "active" | "ended";

/** What the page is told. Each text is for a person. */
export interface Listener {
  registration(state: Registration, text: string): void;
  call(state: CallState, call: Call): void;
  /** The way of the media changed or its counters grew; about once a second in a call. */
  path(path: Path): void;
  /** The media are interrupted (true) or back (false). */
  interrupted(yes: boolean): void;
  /** Remote sound or picture is here and wants to be played. */
  remote(kind: "audio" | "video", stream: MediaStream): void;
  /** The own picture, for showing; null while the camera is off. */
  own(stream: MediaStream | null): void;
  /** Something went wrong that does not end a call; link is an address that helps. */
  trouble(text: string, link?: string): void;
  /** Something to know. */
  notice(text: string): void;
  /** The edge no longer takes the token, as it ran out: a new one is wanted, by renewed. */
  stale(): void;
  /** The log-in no longer serves: the person has to log in again. With atOnce no call goes on either. */
  loggedOut(text: string, atOnce: boolean): void;
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
  /** Whether it has, or is to have, a picture: for an incoming call that is not answered, whether one is offered. */
  video: boolean;
  /** Whether the camera is on. */
  camera: boolean;
  /** Why it ended; fault is false where nothing went wrong. withoutVideo: the same call with sound only may succeed. */
  outcome?: { text: string; fault: boolean; withoutVideo?: boolean };
}

const registerExpires = 600; // s; the edge lowers it to the token's life
const registerPatience = 10_000; // ms to the answer of a REGISTER that something waits for
const relayPatience = 5_000; // ms from the start of gathering to a relay candidate for each line
const mediaPatience = 30_000; // ms after the click in which the first sound and picture are looked for
const retryLeast = 5_000; // ms to the first REGISTER after a refusal that may pass, doubled up to
const retryMost = 60_000;
const restartAgain = 5_000; // ms to the next ICE restart after one that did not come about, and after a call's start
const credentialLeast = 30_000; // ms that the edge's credential must last to begin a call with

// Live is a Call with what carries it.
interface Live extends Call {
  session?: RTCSession;
  pc?: RTCPeerConnection;
  pcConfig?: RTCConfiguration;
  /** What this browser sends: microphone, and camera or its stand-in. */
  tracks: Partial<Record<"audio" | "video", MediaStreamTrack>>;
  relay?: Relay;
  remoteSDP: string;
  abort: AbortController;
  clicked: number; // performance.now() of the click on call or answer
  firstAudio: number | null;
  firstVideo: number | null;
  connected: boolean;
  broken: boolean;
  restarting: Promise<void> | undefined; // the ICE restart under way
  over: boolean;
  fault?: string; // words that go before what SIP says
  withoutVideo?: boolean;
  relayError?: number;
  timers: number[];
  relayTimer: number;
}

export class Phone {
  private ua: UA | undefined;
  private live: Live | undefined;
  private last: Live | undefined;
  private retry = 0;
  private retryTimer = 0;
  private stopping = false;
  private credential: Relay | undefined; // the edge's newest
  private waiting: ((ok: boolean) => void)[] = []; // for the answer to a REGISTER
  private restarted = 0;

  constructor(
    private readonly config: Config,
    private login: Login,
    private readonly tell: Listener,
  ) {}

  /** start opens the WebSocket and registers; both are repeated until stop. */
  start(): void {
    const ua = new UA({
      sockets: new Wire(new WebSocketInterface(this.config.sip_url), (m) => this.hear(m)),
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
    if (this.config.turn_credential === "edge") ua.registrator().setExtraHeaders([turncredential.request]);
    const who = person(this.login.uri, this.login.name).name;
    let been = false; // connected at least once
    let failures = 0;
    ua.on("connecting", () => this.tell.registration(been ? "lost" : "connecting", !navigator.onLine ? "You are offline" : been ? "Connection lost, reconnecting" : "Connecting"));
    ua.on("connected", () => {
      been = true;
      failures = 0;
      this.tell.registration("connecting", "Registering");
    });
    ua.on("disconnected", (e) => {
      clearTimeout(this.retryTimer);
      this.answered(false);
      if (this.stopping) return;
      const over = e.code === 1008 ? words.ended(e.reason) : undefined;
      if (over) return this.tell.loggedOut(over, true);
      this.tell.registration("lost", !navigator.onLine ? "You are offline" : been ? "Connection lost, reconnecting" : "Gateway not reached, trying again");
      if (!been && navigator.onLine && ++failures === 2) {
        const { text, link } = words.gateway(this.config.sip_url);
        this.tell.trouble(text, link);
      }
    });
    ua.on("registered", () => {
      this.retry = 0;
      this.tell.registration("registered", `Registered as ${who}`);
    });
    ua.on("unregistered", () => {
      if (!this.stopping && ua.isConnected()) this.tell.registration("connecting", "Registering");
    });
    ua.on("registrationExpiring", () => {
      // The rest of a token that is due is too short to register with; the new one registers.
      if (this.login.life.due() > 0) ua.register();
      else this.tell.stale();
    });
    ua.on("registrationFailed", (e) => {
      this.answered(false);
      if (!ua.isConnected()) return; // "disconnected" has told it
      const why = words.registration(e.response?.status_code, e.cause);
      this.tell.registration("refused", why.text);
      if (why.again === "login" && this.login.life.due() === 0) {
        this.tell.registration("connecting", "Renewing your log-in"); // the computer slept over it, or it is too short
        this.tell.stale();
        return;
      }
      if (why.again === "login") {
        const cause = clock.words();
        this.tell.loggedOut(cause ? `${why.text}. ${cause}` : `${why.text}.`, false);
        return;
      }
      this.retryTimer = window.setTimeout(() => ua.isConnected() && ua.register(), Math.min(retryLeast * 2 ** this.retry++, retryMost));
    });
    ua.on("newRTCSession", (e: RTCSessionEvent) => {
      if (String(e.originator) === "remote") this.incoming(e.session as RTCSession, (e.request as { body?: string | null }).body ?? "");
    });
    ua.start();
  }

  /** stop ends the call, takes the registration back and closes the WebSocket. */
  stop(): void {
    this.stopping = true;
    clearTimeout(this.retryTimer);
    this.answered(false);
    this.hangup();
    this.ua?.stop();
    this.ua = undefined;
    this.tell.registration("none", "");
  }

  /** renewed takes a new token and registers with it. A call goes on as it was. It rejects where the edge refuses. */
  async renewed(login: Login): Promise<void> {
    this.login = login;
    this.ua?.set("authorization_jwt", `Bearer ${login.token}`);
    if (this.ua?.isConnected() && !(await this.register())) throw new Error("the new token was not registered");
  }

  /**
   * renewRelay moves the call to new relay candidates under a fresh credential; without a call it does nothing. While it
   * is under way, more of them are the same one.
   */
  async renewRelay(): Promise<void> {
    const call = this.live;
    if (!call?.answered || !call.session || !call.pc || !call.pcConfig) return;
    call.restarting ??= this.moveRelay(call, call.session, call.pc, call.pcConfig).finally(() => (call.restarting = undefined));
    return call.restarting;
  }

  private async moveRelay(call: Live, session: RTCSession, pc: RTCPeerConnection, config: RTCConfiguration): Promise<void> {
    clearTimeout(call.relayTimer);
    let again: number | undefined = restartAgain;
    try {
      const relay = await this.relay(call.abort.signal, true);
      if (call.over) return;
      call.pcConfig = { ...config, iceServers: relay.servers };
      await restart(session, pc, call.pcConfig);
      call.relay = relay;
      this.restarted++;
      again = undefined;
    } catch (e) {
      if (e instanceof RestartError && !e.again) again = Infinity;
      throw e;
    } finally {
      if (!call.over) this.watchRelay(call, again);
    }
  }

  /** busy tells whether there is a call, at whatever stage. */
  get busy(): boolean {
    return this.live !== undefined;
  }

  /** restarts counts the ICE restarts after which the media moved. */
  get restarts(): number {
    return this.restarted;
  }

  /** relayLife is the life of the call's relay credential, or of the one at hand for the next. */
  get relayLife(): Life | undefined {
    return (this.live?.relay ?? this.credential)?.life;
  }

  pc(): RTCPeerConnection | null {
    return this.live?.pc ?? null;
  }

  /** firstAudio is ms from the click to the first received sound, of this call or the last. */
  firstAudio(): number | null {
    return (this.live ?? this.last)?.firstAudio ?? null;
  }

  /** firstVideo is ms from the click to the first decoded frame, of this call or the last. */
  firstVideo(): number | null {
    return (this.live ?? this.last)?.firstVideo ?? null;
  }

  /** path reads the way of the media now; null without a call. */
  async path(): Promise<Path | null> {
    const call = this.live;
    if (!call?.pc) return null;
    return read((await call.pc.getStats()) as unknown as Report, call.remoteSDP);
  }

  /** call rings uri, with a picture or without. The click is now. */
  async call(uri: string, video: boolean): Promise<void> {
    if (this.live || !this.ua) return;
    const call = this.begin("outgoing", person(uri), video);
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

  /** answer takes the incoming call; a picture that is offered is refused unless video. The click is now. */
  async answer(video: boolean): Promise<void> {
    const call = this.live;
    if (!call?.session || call.direction !== "incoming" || call.clicked) return;
    const offered = call.video;
    call.video = offered && video;
    call.clicked = performance.now();
    this.tell.call("calling", call);
    const ready = await this.prepare(call);
    if (!ready || call.over) {
      if (call.over || !call.withoutVideo) return;
      // The camera alone failed: it rings on, to be answered with sound only.
      call.clicked = 0;
      call.video = offered;
      call.abort = new AbortController();
      const text = call.fault!;
      delete call.fault;
      delete call.withoutVideo;
      this.tell.call("incoming", call);
      this.tell.trouble(text);
      return;
    }
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
    this.changed(call);
  }

  /** camera turns the camera off, and its light with it, or on again. */
  async camera(on: boolean): Promise<void> {
    const call = this.live;
    if (!call?.answered || !call.video || call.camera === on) return;
    call.camera = on;
    this.changed(call);
    try {
      await this.send(call, "video", on ? await openOne("camera") : blank());
    } catch (e) {
      call.camera = !on;
      if (!call.over) this.tell.trouble(e instanceof MediaError ? words.device("camera", e.why) : words.device("camera", ""));
    }
    this.changed(call);
  }

  /** use makes the call take sound or picture from the device that was chosen. */
  async use(device: "microphone" | "camera"): Promise<void> {
    const call = this.live;
    const kind = device === "microphone" ? "audio" : "video";
    if (!call?.tracks[kind] || (kind === "video" && !call.camera)) return; // taken up at the next call, or when the camera comes on
    const old = call.tracks[kind];
    if (kind === "video") old.stop(); // some systems give one camera at a time
    try {
      await this.send(call, kind, await openOne(device, true));
    } catch (e) {
      if (call.over) return;
      this.tell.trouble(words.device(device, e instanceof MediaError ? e.why : ""));
      if (kind === "video") await this.camera(false);
    }
  }

  /** replugged looks whether a device that a call has lost can be replaced, after the list of devices changed. */
  async replugged(): Promise<void> {
    const call = this.live;
    if (call?.tracks.audio?.readyState === "ended") await this.replace(call, "microphone", false);
  }

  private changed(call: Live): void {
    if (!call.over) this.tell.call("active", call);
  }

  // send makes track what the call sends of a kind; the one before is stopped. null sends nothing.
  private async send(call: Live, kind: "audio" | "video", track: MediaStreamTrack | null): Promise<void> {
    const sender = call.pc?.getTransceivers().find((t) => t.receiver.track.kind === kind)?.sender;
    if (call.over || !sender) {
      track?.stop();
      return;
    }
    if (track && kind === "audio") track.enabled = !call.muted;
    await sender.replaceTrack(track);
    call.tracks[kind]?.stop();
    if (track) call.tracks[kind] = track;
    else delete call.tracks[kind];
    if (call.over) track?.stop();
    else this.watchTracks(call);
  }

  // watchTracks tells when a device is pulled out, and shows the own picture.
  private watchTracks(call: Live): void {
    const { audio, video } = call.tracks;
    if (audio) audio.onended = () => void this.replace(call, "microphone", true);
    if (video) video.onended = () => void this.replace(call, "camera", true);
    this.tell.own(video && call.camera ? new MediaStream([video]) : null);
  }

  // replace takes another device for one that has gone. A microphone is needed; a camera is turned off.
  private async replace(call: Live, device: "microphone" | "camera", gone: boolean): Promise<void> {
    if (call.over) return;
    if (device === "camera") {
      await this.camera(false);
      this.tell.notice("The camera is gone, so it was turned off.");
      return;
    }
    const track = await openOne("microphone").catch(() => undefined);
    if (!track) {
      if (gone && !call.over) this.tell.trouble("The microphone is gone: the other side cannot hear you. Plug one in.");
      return;
    }
    await this.send(call, "audio", track);
    if (!call.over) this.tell.notice(track.label ? `The microphone is gone; “${plain(track.label)}” is used now.` : "The microphone is gone; another one is used now.");
  }

  // hear reads each message of the edge's: what JsSIP does not tell is in the answers to REGISTER.
  private hear(message: string): void {
    if (!turncredential.registered(message)) return;
    const c = turncredential.ofRegister(message);
    if (c) {
      const t = now();
      this.credential = {
        servers: [{ urls: c.urls, username: c.username, credential: c.credential }],
        life: new Life(c.expires * 1000 - (t.wall + clock.measured.offset), t),
      };
    }
    this.answered(true);
  }

  // register sends a REGISTER and resolves with its success.
  private register(): Promise<boolean> {
    const done = new Promise<boolean>((resolve) => {
      this.waiting.push(resolve);
      setTimeout(() => resolve(false), registerPatience);
    });
    this.ua?.register();
    return done;
  }

  private answered(ok: boolean): void {
    for (const resolve of this.waiting.splice(0)) resolve(ok);
  }

  // relay gets a credential for a call: from the WAF, or from the edge with the registration.
  private async relay(signal: AbortSignal, fresh: boolean): Promise<Relay> {
    if (this.config.turn_credential !== "edge") return turn(this.config, this.login, signal);
    if (fresh || !this.credential || this.credential.life.left() < credentialLeast) await this.register();
    if (!this.credential || this.credential.life.left() === 0) throw new LoginError("The gateway gave no credential for the relay. That is for the operator to set right.");
    return this.credential;
  }

  private begin(direction: Call["direction"], who: { name: string; address: string }, video: boolean): Live {
    const call: Live = {
      direction,
      ...who,
      answered: 0,
      ended: 0,
      muted: false,
      video,
      camera: false,
      tracks: {},
      remoteSDP: "",
      abort: new AbortController(),
      clicked: 0,
      firstAudio: null,
      firstVideo: null,
      connected: false,
      broken: false,
      restarting: undefined,
      over: false,
      timers: [],
      relayTimer: 0,
    };
    this.live = call;
    return call;
  }

  private incoming(session: RTCSession, offer: string): void {
    const from = session.remote_identity;
    const who = person(from.uri.toString(), from.display_name);
    if (this.live) {
      session.terminate({ status_code: 486 });
      this.tell.notice(words.busy(who.name));
      return;
    }
    const call = this.begin("incoming", who, sdp.video(offer));
    call.session = session;
    const handlers = this.handlers(call);
    for (const name of Object.keys(handlers) as (keyof RTCSessionEventMap)[]) session.on(name, handlers[name]!);
    this.tell.call("incoming", call);
  }

  // prepare gets a relay credential, microphone and camera, all at once. On failure the call ends in words,
  // but for a camera that fails an incoming call.
  private async prepare(call: Live) {
    const [relay, media] = await Promise.allSettled([this.relay(call.abort.signal, false), open(call.video)]);
    if (media.status === "fulfilled") {
      const [audio, video] = [media.value.getAudioTracks()[0], media.value.getVideoTracks()[0]];
      if (call.over) media.value.getTracks().forEach((t) => t.stop());
      else {
        if (audio) call.tracks.audio = audio;
        if (video) call.tracks.video = video;
        call.camera = video !== undefined;
        this.watchTracks(call);
      }
    }
    if (call.over) return null;
    if (media.status === "rejected") {
      const e: unknown = media.reason;
      const device = e instanceof MediaError ? e.device : "microphone";
      call.fault = words.device(device, e instanceof MediaError ? e.why : "");
      call.withoutVideo = device === "camera";
      if (!call.withoutVideo || call.direction === "outgoing") this.end(call, 480);
      return null;
    }
    if (relay.status === "rejected") {
      const e: unknown = relay.reason;
      const stale = e instanceof LoginError && /^invalid_(grant|token|request)$/.test(e.code);
      call.fault = stale ? "Your log-in has run out. Log in again, then call." : e instanceof LoginError ? e.message : "No pass for the relay could be had. Try again.";
      this.end(call, 480);
      return null;
    }
    call.relay = relay.value;
    call.pcConfig = {
      iceServers: relay.value.servers,
      iceTransportPolicy: "relay",
      bundlePolicy: "balanced", // media multiplexing is not supported in IMS (TS 23.228 U.1): max-bundle refuses an offer without the group
      rtcpMuxPolicy: "require",
    };
    return { mediaStream: media.value, mediaConstraints: { audio: true, video: call.video }, pcConfig: call.pcConfig };
  }

  private handlers(call: Live): Partial<RTCSessionEventMap> {
    return {
      peerconnection: (e: PeerConnectionEvent) => this.watch(call, e.peerconnection),
      icecandidate: (e: IceCandidateEvent) => {
        const d = call.pc?.localDescription;
        if (d && sdp.relayed(d.type, d.sdp)) e.ready();
      },
      sdp: (e: SDPEvent) => {
        if (String(e.originator) !== "remote") return;
        if (e.type === "offer" && !call.video) e.sdp = sdp.withoutVideo(e.sdp); // which refuses it: port 0 in the answer
        call.remoteSDP = e.sdp;
        if (call.answered) this.watchPicture(call); // of a re-INVITE
      },
      reinvite: (e: ReInviteEvent) => {
        if (call.restarting && call.pc?.signalingState !== "stable") e.reject({ status_code: 491, reason_phrase: "Request Pending" });
      },
      progress: (e: IncomingEvent | OutgoingEvent) => {
        const status = "response" in e ? e.response?.status_code : undefined;
        if (call.direction === "outgoing" && !call.answered && (status === 180 || status === 183)) this.tell.call("ringing", call);
      },
      accepted: () => {
        call.answered = Date.now();
        const wanted = call.video;
        this.watchPicture(call);
        this.tell.call("active", call);
        if (wanted && !call.video) this.tell.notice(`${call.name} answered without video.`);
        this.watchRelay(call);
      },
      ended: (e: EndEvent) => this.over(call, e),
      failed: (e: EndEvent) => this.over(call, e),
    };
  }

  // watchPicture ends the picture of a call whose far side refuses it or gives it up.
  private watchPicture(call: Live): void {
    if (!call.video || sdp.video(call.remoteSDP)) return;
    call.video = call.camera = false;
    call.tracks.video?.stop();
    delete call.tracks.video;
    this.tell.own(null);
    if (call.answered) this.changed(call);
  }

  // watchRelay renews the relay's credential in time, or after ms.
  private watchRelay(call: Live, ms = Math.max(call.relay?.life.due() ?? Infinity, restartAgain / 5)): void {
    clearTimeout(call.relayTimer);
    if (ms < 2 ** 31) call.relayTimer = window.setTimeout(() => void this.renewRelay().catch(() => {}), ms);
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
      if (relay) return;
      if (pc.iceGatheringState === "gathering") call.timers.push(window.setTimeout(noRelay, relayPatience));
      if (pc.iceGatheringState === "complete") noRelay();
    });
    // These come before JsSIP's own listeners, which would send an offer without any way to answer it.
    pc.addEventListener("icecandidate", (e) => {
      const d = pc.localDescription;
      if (d && sdp.relayed(d.type, d.sdp)) relay = true;
      else if (!e.candidate) noRelay();
    });
    pc.addEventListener("icecandidateerror", (e) => {
      const code = (e as RTCPeerConnectionIceErrorEvent).errorCode;
      if (call.relayError === undefined || code < 700) call.relayError = code; // 701: not reached
    });
    pc.addEventListener("track", (e) => {
      const kind = e.track.kind === "video" ? "video" : "audio";
      this.tell.remote(kind, new MediaStream([e.track]));
    });
    pc.addEventListener("connectionstatechange", () => {
      if (pc.connectionState === "connected") call.connected = true;
      const broken = pc.connectionState === "disconnected" || pc.connectionState === "failed";
      if (!call.answered || call.over || broken === call.broken) return;
      call.broken = broken;
      this.tell.interrupted(broken);
    });
    call.timers.push(window.setInterval(() => void this.report(call), 1000));
    const until = performance.now() + mediaPatience;
    const look = async () => {
      const found = call.firstAudio !== null && (call.firstVideo !== null || !call.video);
      if (call.over || found || performance.now() > until) return;
      const stats = await pc.getStats().catch(() => undefined);
      if (stats) {
        const p = read(stats as unknown as Report, "");
        if (p.energy > 0) call.firstAudio ??= performance.now() - call.clicked;
        if (p.video.framesDecoded > 0) call.firstVideo ??= performance.now() - call.clicked;
      }
      call.timers.push(window.setTimeout(look, 50)); // getStats answers from a cache of 50 ms
    };
    void look();
  }

  private async report(call: Live): Promise<void> {
    if (call.over || !call.answered || !call.pc) return;
    const stats = await call.pc.getStats().catch(() => undefined);
    if (stats && !call.over) this.tell.path(read(stats as unknown as Report, call.remoteSDP));
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
    if (!call.over) this.finish(call, this.faulty(call) ?? words.ending({ ...cause(call), connected: call.connected, name: call.name }));
  }

  private faulty(call: Live): Call["outcome"] {
    return call.fault ? { text: call.fault, fault: true, withoutVideo: call.withoutVideo ?? false } : undefined;
  }

  private over(call: Live, e: EndEvent): void {
    if (call.over) return;
    const message = e.message as unknown as { status_code?: number; reason_phrase?: string; getHeader?(name: string): string | undefined } | null;
    const status = typeof message?.status_code === "number" ? message.status_code : undefined;
    const phrase = status !== undefined && typeof message?.reason_phrase === "string" ? message.reason_phrase : undefined;
    const reason = typeof message?.getHeader === "function" ? message.getHeader("reason") : undefined;
    this.finish(
      call,
      this.faulty(call) ??
        words.ending({
          cause: e.cause,
          originator: String(e.originator),
          ...(status === undefined ? {} : { status }),
          ...(phrase === undefined ? {} : { phrase }),
          ...(reason === undefined ? {} : { reason: plain(reason, 200) }),
          connected: call.connected,
          name: call.name,
        }),
    );
    if (status === 401 || status === 407) this.tell.loggedOut(words.status(401, call.name), false);
  }

  private finish(call: Live, outcome: NonNullable<Call["outcome"]>): void {
    if (call.over) return;
    call.over = true;
    call.abort.abort();
    call.ended = Date.now();
    call.outcome = outcome;
    for (const t of call.timers) clearTimeout(t); // clears intervals as well
    clearTimeout(call.relayTimer);
    for (const t of Object.values(call.tracks)) t.stop();
    this.last = call;
    if (this.live === call) this.live = undefined;
    this.tell.own(null);
    this.tell.call("ended", call);
  }
}

// cause is how JsSIP would name an end that came before there was a session.
function cause(call: Live): { cause: string; originator: string } {
  return { cause: call.answered ? "Terminated" : call.direction === "outgoing" ? "Canceled" : "Rejected", originator: "local" };
}
