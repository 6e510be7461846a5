// A WebSocket for JsSIP that lets the page hear each message as it comes in. JsSIP tells a page of the
// first 200 OK to a REGISTER only; what stands in the later ones is read here.

import type { Socket } from "jssip/lib/Socket";

/** Wire wraps a socket of JsSIP's and passes everything on, unchanged and in order. */
export class Wire implements Socket {
  onconnect: () => void = () => {};
  ondisconnect: (error: boolean, code?: number, reason?: string) => void = () => {};
  ondata: <T>(data: T) => void = () => {};

  /** hear gets each text that comes in, before JsSIP does. */
  constructor(
    private readonly inner: Socket,
    hear: (message: string) => void,
  ) {
    inner.onconnect = () => this.onconnect();
    inner.ondisconnect = (error, code, reason) => this.ondisconnect(error, code, reason);
    inner.ondata = (data) => {
      if (typeof data === "string") hear(data);
      this.ondata(data);
    };
  }

  get via_transport(): string {
    return this.inner.via_transport;
  }
  set via_transport(v: string) {
    this.inner.via_transport = v;
  }
  get url(): string {
    return this.inner.url;
  }
  get sip_uri(): string {
    return this.inner.sip_uri;
  }
  connect(): void {
    this.inner.connect();
  }
  disconnect(): void {
    this.inner.disconnect();
  }
  send(message: string | ArrayBufferLike | Blob | ArrayBufferView): boolean {
    return this.inner.send(message);
  }
  isConnected(): boolean {
    return this.inner.isConnected();
  }
  isConnecting(): boolean {
    return this.inner.isConnecting();
  }
}
