// The page as a public OAuth client: authorization code with PKCE (RFC 6749 §4.1, RFC 7636), the
// answer's state and issuer checked (RFC 9207), refresh (RFC 6749 §6), a TURN token for each call by token
// exchange (RFC 8693), revocation at the end (RFC 7009); and the portal's door for guests. Tokens live in this module's values and nowhere else; what must survive the way to the
// WAF and back, state and verifier, is kept in sessionStorage until then and opens nothing by itself.

import { measure } from "./clock.ts";
import { Life, now, type Instant } from "./life.ts";
import * as words from "./words.ts";

/** What GET /config.json says: which WAF, and what of it. */
export interface Config {
  issuer: string;
  authorization_endpoint: string;
  token_endpoint: string;
  end_session_endpoint?: string;
  revocation_endpoint?: string;
  /** Whether the WAF puts "iss" into its answer (RFC 9207 §3); then an answer without it is refused. */
  authorization_response_iss_parameter_supported: boolean;
  client_id: string;
  scope: string;
  sip_url: string;
  domain: string;
  /** Whether the portal lets guests in. */
  guests?: boolean;
  /** Who gives relay credentials: the WAF by token exchange (default), or the edge with a registration. */
  turn_credential?: "token" | "edge";
}

/** Somebody who is logged in. token is the SIP access token, refresh the token that gets the next one. */
export interface Login {
  token: string;
  refresh?: string;
  life: Life;
  name: string;
  uri: string;
  guest: boolean;
}

/** A relay's servers, with the credential's life. */
export interface Relay {
  servers: RTCIceServer[];
  life: Life;
}

/** LoginError carries words for the person in its message. */
export class LoginError extends Error {
  constructor(message: string, readonly code = "") {
    super(message);
  }
}

const key = "wicgate.login"; // in sessionStorage
const most = 10 * 60_000; // longest log-in under way, ms
const patience = 10_000; // for one answer of the WAF, ms

/** Where the WAF sends the person back to. */
export function redirectURI(origin: string): string {
  return origin + "/";
}

/** base64url without padding (RFC 4648 §5). */
export function base64url(b: Uint8Array): string {
  return btoa(String.fromCharCode(...b)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** random is n random bytes in base64url. */
export function random(n: number): string {
  return base64url(crypto.getRandomValues(new Uint8Array(n)));
}

/** challenge is PKCE's S256 of a verifier (RFC 7636 §4.2). */
export async function challenge(verifier: string): Promise<string> {
  return base64url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier))));
}

/** What is remembered between leaving for the WAF and coming back. */
export interface Pending {
  state: string;
  verifier: string;
  started: number;
}

/** authorizeURL is where to send the person. With silent the WAF asks nothing: it answers by its session, or by an error. */
export async function authorizeURL(c: Config, origin: string, p: Pending, silent = false): Promise<string> {
  const u = new URL(c.authorization_endpoint);
  u.searchParams.set("response_type", "code");
  u.searchParams.set("client_id", c.client_id);
  u.searchParams.set("redirect_uri", redirectURI(origin));
  u.searchParams.set("scope", c.scope);
  u.searchParams.set("state", p.state);
  u.searchParams.set("code_challenge", await challenge(p.verifier));
  u.searchParams.set("code_challenge_method", "S256");
  if (silent) u.searchParams.set("prompt", "none"); // OpenID Connect Core §3.1.2.1
  return u.href;
}

/** isAnswer tells whether the page was opened by the WAF's redirect. */
export function isAnswer(search: string): boolean {
  const q = new URLSearchParams(search);
  return q.has("state") && (q.has("code") || q.has("error"));
}

/** readAnswer checks the WAF's redirect against what was remembered, and returns the code. */
export function readAnswer(c: Config, search: string, p: Pending | null, now: number): string {
  const q = new URLSearchParams(search);
  for (const name of ["code", "state", "iss", "error"]) {
    if (q.getAll(name).length > 1) throw new LoginError("The log-in service’s answer is malformed. Log in again.");
  }
  if (!p || q.get("state") !== p.state) {
    throw new LoginError("That log-in was not begun in this window, so it was not used. Log in here.");
  }
  const iss = q.get("iss");
  if (iss === null ? c.authorization_response_iss_parameter_supported : iss !== c.issuer) {
    throw new LoginError("The answer came from another log-in service than the one asked, so it was not used.");
  }
  const error = q.get("error");
  if (error !== null) throw new LoginError(words.login(error), error);
  if (now - p.started > most) throw new LoginError(words.login("invalid_grant"), "invalid_grant");
  const code = q.get("code");
  if (!code) throw new LoginError("The log-in service’s answer is malformed. Log in again.");
  return code;
}

/** readPending reads what leave kept; what is not that is nothing. */
export function readPending(kept: string | null): Pending | null {
  try {
    const p = JSON.parse(kept ?? "null") as Partial<Pending> | null;
    return p && typeof p.state === "string" && typeof p.verifier === "string" && typeof p.started === "number" ? (p as Pending) : null;
  } catch {
    return null;
  }
}

/** leave remembers what is needed and goes to the WAF. */
export async function leave(c: Config, silent = false): Promise<void> {
  const p: Pending = { state: random(16), verifier: random(32), started: Date.now() };
  const url = await authorizeURL(c, location.origin, p, silent);
  sessionStorage.setItem(key, JSON.stringify(p));
  location.assign(url);
}

/** comeBack ends a log-in: the answer's code for a SIP access token. The memory is cleared at once. */
export async function comeBack(c: Config, search: string): Promise<Login> {
  const kept = sessionStorage.getItem(key);
  sessionStorage.removeItem(key);
  const p = readPending(kept);
  const code = readAnswer(c, search, p, Date.now());
  const begun = now();
  const r = await ask(c, {
    grant_type: "authorization_code",
    code,
    redirect_uri: redirectURI(location.origin),
    client_id: c.client_id,
    code_verifier: p!.verifier,
  });
  return readLogin(r, begun);
}

/** refresh exchanges the refresh token for a new log-in (RFC 6749 §6); who it is does not change. */
export async function refresh(c: Config, who: Login): Promise<Login> {
  const begun = now();
  const r = await ask(c, { grant_type: "refresh_token", refresh_token: who.refresh ?? "", client_id: c.client_id });
  const next = readLogin(r, begun, who);
  return next.refresh === undefined && who.refresh !== undefined ? { ...next, refresh: who.refresh } : next;
}

/** guest asks the portal for a guest's log-in. */
export async function guest(): Promise<Login> {
  const begun = now();
  const response = await reach("/guest", { method: "POST", headers: { Accept: "application/json" } });
  const r = await object(response);
  if (!response.ok) {
    const code = typeof r.error === "string" ? r.error : "";
    throw new LoginError(words.guest(response.status, code), code || "server_error");
  }
  return { ...readLogin(r, begun), guest: true };
}

/** revoke ends the log-in at the WAF (RFC 7009 §2.1), also while the page is being left; nobody waits for it. */
export function revoke(c: Config, who: Login): void {
  if (!c.revocation_endpoint) return;
  const [token, hint] = who.refresh === undefined ? [who.token, "access_token"] : [who.refresh, "refresh_token"];
  void fetch(c.revocation_endpoint, {
    method: "POST",
    body: new URLSearchParams({ token, token_type_hint: hint, client_id: c.client_id }),
    credentials: "omit",
    keepalive: true,
    referrerPolicy: "no-referrer",
  }).catch(() => {}); // then its life ends it
}

/** readLogin takes a token response (RFC 6749 §5.1) with its member "ims" apart; what it leaves out is as in before. */
export function readLogin(r: Record<string, unknown>, begun: Instant, before?: Login): Login {
  const ims = r.ims as { impu?: unknown; scenario?: unknown } | undefined;
  const impu = (Array.isArray(ims?.impu) ? ims.impu[0] : ims?.impu) ?? before?.uri;
  if (typeof r.access_token !== "string" || r.access_token === "" || String(r.token_type).toLowerCase() !== "bearer" || typeof impu !== "string") {
    throw new LoginError("The log-in service’s answer is not for calling. That is for the operator to set right.");
  }
  return {
    token: r.access_token,
    ...(typeof r.refresh_token === "string" && r.refresh_token !== "" ? { refresh: r.refresh_token } : {}),
    life: readLife(r.expires_in, begun),
    name: typeof r.name === "string" ? r.name : (before?.name ?? ""),
    uri: /^sips?:/i.test(impu) ? impu : "sip:" + impu,
    guest: before?.guest ?? ims?.scenario === 3, // TS 24.371: an identity out of the WWSF's pool
  };
}

// readLife takes expires_in, s; a WAF that leaves it out is taken for a cautious one.
function readLife(seconds: unknown, begun: Instant): Life {
  return new Life((typeof seconds === "number" && seconds > 0 ? seconds : 300) * 1000, begun);
}

/** turn fetches a fresh TURN token for one call (RFC 8693 §2.1), as servers for RTCPeerConnection. */
export async function turn(c: Config, who: Login, signal?: AbortSignal): Promise<Relay> {
  const begun = now();
  const r = await ask(
    c,
    {
      grant_type: "urn:ietf:params:oauth:grant-type:token-exchange",
      client_id: c.client_id,
      subject_token: who.token,
      subject_token_type: "urn:ietf:params:oauth:token-type:access_token",
    },
    signal,
  );
  return { servers: readServers(r), life: readLife(r.expires_in, begun) };
}

/** readServers checks the member "ice_servers": turn: or turns: URLs with a user name and a credential, at most 8. */
export function readServers(r: Record<string, unknown>): RTCIceServer[] {
  const list = Array.isArray(r.ice_servers) ? (r.ice_servers as Record<string, unknown>[]) : [];
  const servers: RTCIceServer[] = [];
  for (const s of list.slice(0, 8)) {
    const urls = (Array.isArray(s.urls) ? s.urls : [s.urls]).filter((u): u is string => typeof u === "string" && /^turns?:/i.test(u));
    if (urls.length > 0 && typeof s.username === "string" && s.username !== "" && typeof s.credential === "string" && s.credential !== "") {
      servers.push({ urls, username: s.username, credential: s.credential });
    }
  }
  if (servers.length === 0) throw new LoginError("The log-in service gave no relay for the sound. That is for the operator to set right.");
  return servers;
}

// ask posts a form to the token endpoint and returns the JSON object, or throws LoginError with words.
async function ask(c: Config, form: Record<string, string>, signal?: AbortSignal): Promise<Record<string, unknown>> {
  const response = await reach(c.token_endpoint, { method: "POST", body: new URLSearchParams(form) }, signal);
  const r = await object(response);
  if (response.ok) return r;
  const code = typeof r.error === "string" ? r.error : response.status >= 500 ? "server_error" : "";
  throw new LoginError(words.login(code), code);
}

/** reach fetches, without cookies and with patience, and reads the other side's clock. */
export async function reach(url: string, init: RequestInit, signal?: AbortSignal): Promise<Response> {
  const stop = AbortSignal.timeout(patience);
  const asked = Date.now();
  try {
    const response = await fetch(url, {
      ...init,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
      signal: signal ? any(stop, signal) : stop,
    });
    measure(response, asked);
    return response;
  } catch {
    throw new LoginError(words.unreachable(new URL(url, location.href), navigator.onLine), "unreachable");
  }
}

async function object(response: Response): Promise<Record<string, unknown>> {
  const body: unknown = await response.json().catch(() => null);
  return typeof body === "object" && body !== null ? (body as Record<string, unknown>) : {};
}

// any is AbortSignal.any, which browsers older than 2024 lack.
function any(...signals: AbortSignal[]): AbortSignal {
  const all = new AbortController();
  for (const s of signals) {
    if (s.aborted) all.abort(s.reason);
    s.addEventListener("abort", () => all.abort(s.reason), { once: true });
  }
  return all.signal;
}
