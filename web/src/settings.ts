// The dialog in which the person chooses microphone, camera and speaker, before a call and in one.

import { canChooseSpeaker, choice, choose, kinds, list, recall, type Kind } from "./devices.ts";
import { $, write } from "./dom.ts";
import { open as openDevices, stop, MediaError } from "./media.ts";
import * as words from "./words.ts";

const dialog = $<HTMLDialogElement>("settings");
const select: Record<Kind, HTMLSelectElement> = { microphone: $("microphone-choice"), camera: $("camera-choice"), speaker: $("speaker-choice") };
const names = $<HTMLButtonElement>("device-names");
const hint = $("settings-hint");

/** begin wires the dialog up; used is told of each choice, changed of each device that comes or goes. */
export function begin(used: (kind: Kind) => void, changed: () => void): void {
  recall();
  select.speaker.closest<HTMLElement>(".pick")!.hidden = !canChooseSpeaker();
  for (const kind of kinds) {
    select[kind].onchange = () => {
      choose(kind, select[kind].value);
      used(kind);
    };
  }
  $("open-settings").onclick = () => {
    void refresh();
    write(hint, "");
    dialog.showModal();
  };
  $("close-settings").onclick = close;
  dialog.onclick = (e) => {
    if (e.target === dialog) close(); // beside it
  };
  names.onclick = async () => {
    names.disabled = true;
    try {
      stop(await openDevices(true));
      write(hint, "");
    } catch (e) {
      write(hint, e instanceof MediaError ? words.device(e.device, e.why) : "");
      // A computer without a camera still has a microphone to be named.
      if (e instanceof MediaError && e.device === "camera") stop(await openDevices(false).catch(() => undefined));
    }
    names.disabled = false;
    await refresh();
    if (names.hidden) select.microphone.focus();
  };
  (navigator.mediaDevices as MediaDevices | undefined)?.addEventListener("devicechange", () => {
    void refresh();
    changed();
  });
}

/** refresh fills the lists with the devices that are there now. */
export async function refresh(): Promise<void> {
  const devices = await list();
  for (const kind of kinds) {
    const have = devices[kind];
    const at = select[kind];
    const system = new Option(have.length === 0 ? "The system’s own choice" : "System default", "");
    at.replaceChildren(system, ...have.map((d) => new Option(d.label, d.id)));
    // A chosen device that is pulled out is taken up again when it is back.
    at.value = have.some((d) => d.id === choice[kind]) ? choice[kind] : "";
  }
  names.hidden = devices.microphone.length > 0 || devices.camera.length > 0;
}

/** close closes the dialog, as an incoming call does. */
export function close(): void {
  if (dialog.open) dialog.close();
}
