// Which microphones, cameras and speakers there are, and which the person has chosen. The choice is kept in
// sessionStorage, for a reload of the page; device ids are the browser's, different for each site.

export type Kind = "microphone" | "camera" | "speaker";

export const kinds: readonly Kind[] = ["microphone", "camera", "speaker"];

/** The chosen devices' ids; "" is the system's own choice. */
export const choice: Record<Kind, string> = { microphone: "", camera: "", speaker: "" };

/** One device, for showing. */
export interface Device {
  id: string;
  label: string;
}

const key = "wicgate.devices"; // in sessionStorage
const most = 32; // devices of a kind that are shown

/** choose notes a choice. */
export function choose(kind: Kind, id: string): void {
  choice[kind] = id;
  sessionStorage.setItem(key, JSON.stringify(choice));
}

/** recall takes the choice up again after a reload. */
export function recall(): void {
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) ?? "{}") as Partial<Record<Kind, unknown>>;
    for (const k of kinds) if (typeof kept[k] === "string") choice[k] = kept[k];
  } catch {
    sessionStorage.removeItem(key);
  }
}

/** list returns the devices by kind. Before the person has allowed one, browsers give neither ids nor names. */
export async function list(): Promise<Record<Kind, Device[]>> {
  return sort(await (navigator.mediaDevices as MediaDevices | undefined)?.enumerateDevices().catch(() => []) ?? []);
}

/** sort puts devices under their kinds, with names where the browser gave none. */
export function sort(all: readonly Pick<MediaDeviceInfo, "kind" | "deviceId" | "label">[]): Record<Kind, Device[]> {
  const out: Record<Kind, Device[]> = { microphone: [], camera: [], speaker: [] };
  for (const d of all) {
    const kind = ({ audioinput: "microphone", videoinput: "camera", audiooutput: "speaker" } as const)[d.kind];
    // "default" and "communications" are Chromium's aliases of others in the list.
    if (!kind || d.deviceId === "" || d.deviceId === "default" || d.deviceId === "communications" || out[kind].length >= most) continue;
    out[kind].push({ id: d.deviceId, label: d.label || `${kind[0]!.toUpperCase()}${kind.slice(1)} ${out[kind].length + 1}` });
  }
  return out;
}

/** canChooseSpeaker: not every browser lets a page do that. */
export function canChooseSpeaker(): boolean {
  return "setSinkId" in HTMLMediaElement.prototype;
}
