// An ICE restart (RFC 8445 §9) that moves a call to new relay candidates, taken under a new credential. A
// browser cannot give a live allocation another credential; so new ones are made beside the old ones, which
// carry the media until the new ones do.
//
// JsSIP's own renegotiate is not used: with iceRestart it may send an offer that has no candidate yet, and
// it ends the call when the offer is refused. Here the call stays as it was.

import type { RTCSession } from "jssip/lib/RTCSession";
import { selected, type Report } from "./path.ts";
import { relayed } from "./sdp.ts";

const gatherPatience = 8_000; // ms to a relay candidate for each line
const switchPatience = 10_000; // ms from the answer until the media runs over the new ones

/** Why a restart did not come about. again is false where trying again is of no use. */
export class RestartError extends Error {
  constructor(
    message: string,
    readonly again = true,
  ) {
    super(message);
  }
}

// What JsSIP's session has besides what its declarations say.
interface Sender {
  sendRequest(
    method: string,
    options?: {
      extraHeaders?: string[];
      body?: string;
      eventHandlers?: Record<string, (response?: { body?: string; status_code?: number }) => void>;
    },
  ): void;
}

/** restart resolves when the media has moved; it rejects with RestartError, and then nothing has changed. */
export async function restart(session: RTCSession, pc: RTCPeerConnection, config: RTCConfiguration): Promise<void> {
  const signalling = (): RTCSignalingState => pc.signalingState; // changes while awaited for
  if (!session.isReadyToReOffer() || signalling() !== "stable") throw new RestartError("an offer is under way");
  const before = selected((await pc.getStats()) as unknown as Report);
  pc.setConfiguration(config);
  await pc.setLocalDescription(await pc.createOffer({ iceRestart: true }));
  try {
    await gathered(pc);
    if (signalling() !== "have-local-offer") throw new RestartError("the other side’s offer came first");
    const answer = await invite(session, pc.localDescription!.sdp);
    await pc.setRemoteDescription({ type: "answer", sdp: answer });
  } catch (e) {
    if (signalling() === "have-local-offer") await pc.setLocalDescription({ type: "rollback" }).catch(() => {});
    throw e;
  }
  for (const end = performance.now() + switchPatience; performance.now() < end; await pause(100)) {
    if (pc.connectionState === "closed") throw new RestartError("the call is over", false);
    const after = selected((await pc.getStats()) as unknown as Report);
    if (after.length >= before.length && after.every((id) => !before.includes(id))) return;
  }
  throw new RestartError("the media stayed on the old candidates");
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

// gathered resolves once each line of the local description has a relay candidate.
function gathered(pc: RTCPeerConnection): Promise<void> {
  return new Promise((resolve, reject) => {
    const look = () => {
      const d = pc.localDescription;
      if (d && relayed(d.type, d.sdp, pc.currentRemoteDescription?.sdp)) done(resolve);
      else if (pc.signalingState === "closed") done(() => reject(new RestartError("the call is over", false)));
    };
    const done = (then: () => void) => {
      clearTimeout(timer);
      clearInterval(often);
      pc.removeEventListener("icecandidate", look);
      then();
    };
    const timer = setTimeout(() => done(() => reject(new RestartError("no relay candidate"))), gatherPatience);
    const often = setInterval(look, 250); // a closed connection tells nothing
    pc.addEventListener("icecandidate", look);
    look();
  });
}

// invite sends the offer within the dialog and resolves with the answer. JsSIP repeats it once by itself after a 491.
function invite(session: RTCSession, offer: string): Promise<string> {
  const dialog = session as unknown as Sender;
  return new Promise((resolve, reject) => {
    const fail = (why: string, again = true) => reject(new RestartError(why, again));
    let answered = false;
    dialog.sendRequest("INVITE", {
      extraHeaders: [`Contact: ${session.contact}`, "Content-Type: application/sdp"],
      body: offer,
      eventHandlers: {
        onSuccessResponse: (r) => {
          if (session.isEnded()) return fail("the call is over", false);
          dialog.sendRequest("ACK"); // also for each retransmission
          if (answered) return;
          answered = true;
          if (r?.body) resolve(r.body);
          else fail("an answer without a description");
        },
        onErrorResponse: (r) => fail(`refused with ${r?.status_code ?? "nothing"}`),
        onTransportError: () => fail("the connection broke"),
        onRequestTimeout: () => fail("no answer"),
        onDialogError: (r) => fail(`the dialog is gone (${r?.status_code ?? "?"})`, false),
      },
    });
  });
}
