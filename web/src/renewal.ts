// A log-in that is kept alive: its token is exchanged for a new one before it ends, by the refresh token
// (RFC 6749 §6), for as long as the page is open. Nothing of a call is touched by that.

import { Life } from "./life.ts";
import { LoginError, refresh, type Config, type Login } from "./oauth.ts";
import * as words from "./words.ts";

const retryLeast = 1_000; // ms to the next attempt where the WAF was not reached, doubled up to
const retryMost = 30_000;
const retries = 10; // after the token's end: a computer that slept has no network at once
const longest = 2 ** 31 - 1; // ms that setTimeout takes

/** What a renewal tells. */
export interface Told {
  renewed(login: Login): Promise<void>;
  /** The log-in is over; text says why. */
  ended(text: string): void;
}

export class Renewal {
  private timer = 0;
  private under: Promise<void> | undefined;
  private failures = 0;
  private stopped = false;

  constructor(
    private readonly config: Config,
    private login: Login,
    private readonly tell: Told,
  ) {
    this.wait();
  }

  get life(): Life {
    return this.login.life;
  }

  /** current is the log-in as of now, with the newest token. */
  get current(): Login {
    return this.login;
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.timer);
  }

  /** check renews at once where a sleeping computer or a lost network made a timer late. */
  check(): void {
    if (!this.stopped && this.login.life.due() === 0) void this.renew().catch(() => {});
  }

  /** renew exchanges the token now; of several at once there is one. It rejects with LoginError. */
  renew(): Promise<void> {
    return (this.under ??= this.exchange().finally(() => (this.under = undefined)));
  }

  private wait(ms = this.login.life.due()): void {
    clearTimeout(this.timer);
    if (!this.stopped) this.timer = window.setTimeout(() => void this.renew().catch(() => {}), Math.min(ms, longest));
  }

  private async exchange(): Promise<void> {
    clearTimeout(this.timer);
    let next: Login;
    try {
      if (this.login.refresh === undefined) {
        // A WAF that gives no refresh token: the log-in ends when its token does.
        if (this.login.life.left() > 0) return this.wait(this.login.life.left());
        throw new LoginError(words.runOut, "expired");
      }
      next = await refresh(this.config, this.login);
    } catch (e) {
      if (this.stopped) throw e;
      const passing = !(e instanceof LoginError) || /^(unreachable|server_error|temporarily_unavailable)$/.test(e.code);
      if (passing && (this.login.life.left() > 0 || this.failures < retries)) this.wait(Math.min(retryLeast * 2 ** this.failures++, retryMost));
      else {
        this.stop();
        this.tell.ended(passing ? words.runOut : e.code === "invalid_grant" ? words.sessionEnded : e.message);
      }
      throw e;
    }
    if (this.stopped) return;
    this.login = next;
    this.failures = 0;
    this.wait();
    await this.tell.renewed(next);
  }
}
