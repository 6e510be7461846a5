// Stands in for the package "debug", by esbuild's --alias (build.sh). JsSIP logs whole SIP messages
// through it, Authorization and all, to anybody who sets a key in localStorage. This page logs nothing.

const nothing = Object.assign(() => {}, { enabled: false });

export default function debug(): typeof nothing {
  return nothing;
}

export function enable(): void {}
export function disable(): void {}
