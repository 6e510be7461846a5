// What is heard beside the call itself: a soft bell for an incoming call, and the tone that tells the
// caller it rings over there. Made by WebAudio, so that nothing has to be loaded.

let context: AudioContext | undefined;
let playing: { stop(): void } | undefined;

/** unlock lets sounds out that the browser has held back; it wants to be called from a click or a key. */
export function unlock(): void {
  if (playing && context?.state === "suspended") void context.resume();
}

/** bell rings for the person called, until hush. */
export function bell(): void {
  start(3000, (c, out, t) => {
    for (const [at, f] of [[0, 659.25], [0.18, 880], [0.5, 659.25], [0.68, 880]] as const) strike(c, out, t + at, f, 0.55, 0.14);
  });
}

/** ringing is the caller's tone, 425 Hz for 1 s of 5 (ITU-T E.180), until hush. */
export function ringing(): void {
  start(5000, (c, out, t) => strike(c, out, t, 425, 1.05, 0.05, true));
}

/** hush ends whatever sounds. */
export function hush(): void {
  playing?.stop();
  playing = undefined;
  if (context?.state === "running") void context.suspend();
}

function start(every: number, round: (c: AudioContext, out: AudioNode, t: number) => void): void {
  hush();
  if (!("AudioContext" in window)) return;
  const c = (context ??= new AudioContext()); // suspended until unlock, where nothing was clicked on this page yet
  const out = c.createGain();
  out.connect(c.destination);
  void c.resume();
  const go = () => round(c, out, c.currentTime + 0.05);
  go();
  const timer = setInterval(go, every);
  playing = {
    stop() {
      clearInterval(timer);
      out.disconnect();
    },
  };
}

function strike(c: AudioContext, out: AudioNode, at: number, f: number, length: number, level: number, flat = false): void {
  const o = c.createOscillator();
  const g = c.createGain();
  o.type = "sine";
  o.frequency.value = f;
  g.gain.setValueAtTime(0, at);
  g.gain.linearRampToValueAtTime(level, at + 0.02);
  if (flat) g.gain.setValueAtTime(level, at + length - 0.05);
  g.gain[flat ? "linearRampToValueAtTime" : "exponentialRampToValueAtTime"](flat ? 0 : 0.0005, at + length);
  o.connect(g).connect(out);
  o.start(at);
  o.stop(at + length + 0.05);
}
