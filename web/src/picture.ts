// Draws what is known of a call's way: the hops with their protection, the curves of the last minute, and
// how long the credentials still serve.

import type { Life } from "./life.ts";
import { cipherName, hops, nothing, summary, type Flow, type Hop, type Path } from "./path.ts";
import { height, History, width } from "./plots.ts";
import { $, write } from "./dom.ts";
import { span } from "./words.ts";

let history = new History();
let flow = { out: 0, in: 0 };

/** begin clears everything for a new call. */
export function begin(video: boolean): void {
  history = new History();
  flow = { out: 0, in: 0 };
  show(nothing(), video, 0);
}

/** show draws the way at an instant, ms of a steady clock. Lines move while packets do. */
export function show(p: Path, video: boolean, at: number): void {
  const figure = $("path");
  figure.dataset.out = p.packetsOut > flow.out ? "on" : "off";
  figure.dataset.in = p.packetsIn > flow.in ? "on" : "off";
  flow = { out: p.packetsOut, in: p.packetsIn };
  hops(p).forEach((h, i) => hop(figure.querySelector(`[data-hop="${i + 1}"]`)!, h));
  write($("path-title"), video ? "The way of your voice and picture" : "The way of your voice");
  write($("path-summary"), summary(p, video));
  rows($("path-details"), [
    ["Media encryption", p.srtp ? `${cipherName(p.srtp)} (${p.srtp})` : ""],
    ["Key agreement", [p.dtlsVersion, p.dtls].filter(Boolean).join(", ")],
    ["Relay", [p.local === "relay" ? "TURN" : (p.local ?? ""), p.relayProtocol ? `over ${p.relayProtocol.toUpperCase()}` : "", p.relayURL ?? ""].filter(Boolean).join(", ")],
    ["Behind the gateway", p.core ?? ""],
    ["Sound sent", packets(p.audio.packetsOut, p.audio.bytesOut)],
    ["Sound received", received(p.audio)],
    ...(video
      ? ([
          ["Picture sent", packets(p.video.packetsOut, p.video.bytesOut)],
          ["Picture received", received(p.video) + (p.video.frameWidth ? `, ${p.video.frameWidth} × ${p.video.frameHeight}` : "")],
        ] as const)
      : []),
  ]);
  if (at > 0) history.add(p, at);
  for (const plot of history.plots()) {
    const e = $("plots").querySelector<HTMLElement>(`[data-plot="${plot.name}"]`)!;
    if (!e.querySelector("svg")) {
      e.append($<HTMLTemplateElement>("plot").content.cloneNode(true));
      e.querySelector("svg")!.setAttribute("viewBox", `0 0 ${width} ${height}`);
    }
    write(e.querySelector("dd")!, plot.value);
    e.querySelector("svg")!.setAttribute("aria-label", plot.spoken);
    e.querySelector(".curve")!.setAttribute("d", plot.line);
    e.querySelector(".under")!.setAttribute("d", plot.area);
  }
}

/** lives shows what is left of the log-in's and the relay's credential; undefined where there is none. */
export function lives(login: Life | undefined, relay: Life | undefined): void {
  const at = $("life");
  at.hidden = login === undefined && relay === undefined;
  for (const [name, life] of [["login", login] as const, ["relay", relay] as const]) {
    const e = at.querySelector<HTMLElement>(`[data-life="${name}"]`)!;
    e.hidden = life === undefined;
    if (!life) continue;
    const left = life.left();
    write(e.querySelector("b")!, span(left / 1000));
    e.querySelector("rect + rect")!.setAttribute("width", String(Math.round((left / life.whole) * 100)));
    e.dataset.low = left < life.whole / 10 ? "yes" : "no";
  }
}

function hop(li: HTMLElement, h: Hop): void {
  if (!li.firstChild) li.append($<HTMLTemplateElement>("hop").content.cloneNode(true));
  li.dataset.protection = h.protection;
  const icon = { pending: "#i-wait", sealed: "#i-lock", open: "#i-unlock", unknown: "#i-ask" }[h.protection];
  li.querySelector(".what use")!.setAttribute("href", icon);
  write(li.querySelector(".title")!, h.title);
  write(li.querySelector(".detail")!, h.detail.replace(/(?<=\w)-(?=\w)/g, "\u2011")); // names of ciphers stay on one line
}

function rows(dl: HTMLElement, list: readonly (readonly [string, string])[]): void {
  while (dl.children.length > list.length) dl.lastElementChild!.remove();
  list.forEach(([name, value], i) => {
    let row = dl.children[i];
    if (!row) {
      row = document.createElement("div");
      row.append(document.createElement("dt"), document.createElement("dd"));
      dl.append(row);
    }
    write(row.children[0]!, name);
    write(row.children[1]!, value || "–");
  });
}

function packets(n: number, bytes: number): string {
  const size = bytes < 10_000 ? `${bytes} B` : bytes < 10_000_000 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  return `${n} packets, ${size}`;
}

function received(f: Flow): string {
  return packets(f.packetsIn, f.bytesIn) + (f.packetsLost > 0 ? `, ${f.packetsLost} lost` : "");
}
