// The microphone and the camera, and the picture that stands in for a camera that is off.

import { choice } from "./devices.ts";

/** MediaError tells which device the browser did not give; name is that of getUserMedia's DOMException. */
export class MediaError extends Error {
  constructor(
    readonly device: "microphone" | "camera",
    readonly why: string,
  ) {
    super(`${device}: ${why}`);
  }
}

function constraints(device: "microphone" | "camera", exact = false): MediaTrackConstraints {
  const id = choice[device];
  const want: MediaTrackConstraints = id ? { deviceId: exact ? { exact: id } : { ideal: id } } : {};
  return device === "microphone"
    ? { ...want, echoCancellation: true, noiseSuppression: true, autoGainControl: true }
    : { ...want, width: { ideal: 640 }, height: { ideal: 360 }, frameRate: { ideal: 24, max: 30 } };
}

/** open opens the microphone, and the camera too where there is to be a picture. */
export async function open(picture: boolean): Promise<MediaStream> {
  try {
    const s = await ask({ audio: constraints("microphone"), video: picture && constraints("camera") });
    if (!picture || s.getVideoTracks().length > 0) return s;
    stop(s); // Chromium gives the sound alone where a policy of the page's forbids the camera
    throw new DOMException("", "NotAllowedError");
  } catch (e) {
    if (!picture) throw new MediaError("microphone", name(e));
    // Asked together, so that the person is asked once; the microphone alone shows which one it was.
    const sound = await ask({ audio: constraints("microphone"), video: false }).catch((m: unknown) => {
      throw new MediaError("microphone", name(m));
    });
    stop(sound);
    throw new MediaError("camera", name(e));
  }
}

/** openOne opens one device, exactly the chosen one where exact. */
export async function openOne(device: "microphone" | "camera", exact = false): Promise<MediaStreamTrack> {
  try {
    const s = await ask(device === "microphone" ? { audio: constraints(device, exact) } : { video: constraints(device, exact) });
    return s.getTracks()[0]!;
  } catch (e) {
    throw new MediaError(device, name(e));
  }
}

/** stop ends a stream's tracks, and with them the device's light. */
export function stop(stream: MediaStream | undefined): void {
  stream?.getTracks().forEach((t) => t.stop());
}

/**
 * blank is a track that shows a camera crossed out. It keeps packets flowing where the camera is off, so that
 * the other side sees that it is off instead of the last picture standing still.
 */
export function blank(): MediaStreamTrack | null {
  const canvas = document.createElement("canvas");
  canvas.width = 320;
  canvas.height = 180;
  const c = canvas.getContext("2d");
  const track = c && typeof canvas.captureStream === "function" ? canvas.captureStream(2).getVideoTracks()[0] : undefined;
  if (!c || !track) return null;
  const draw = () => {
    if (track.readyState === "ended") {
      clearInterval(timer);
      return;
    }
    c.fillStyle = "#1a212c";
    c.fillRect(0, 0, 320, 180);
    c.strokeStyle = "#8b97aa";
    c.lineWidth = 4;
    c.lineCap = c.lineJoin = "round";
    c.stroke(new Path2D("M132 72h38a6 6 0 0 1 6 6v24a6 6 0 0 1-6 6h-38a6 6 0 0 1-6-6V78a6 6 0 0 1 6-6zM176 86l18-10v28l-18-10M122 60l76 60"));
  };
  const timer = setInterval(draw, 500); // a track without new frames would stand still for who comes late
  draw();
  return track;
}

function ask(c: MediaStreamConstraints): Promise<MediaStream> {
  const devices = navigator.mediaDevices as MediaDevices | undefined;
  return devices ? devices.getUserMedia(c) : Promise.reject(new DOMException("insecure page", "SecurityError"));
}

function name(e: unknown): string {
  return e instanceof Error ? e.name : "";
}
