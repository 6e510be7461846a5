// What a person types into "whom to call", made into a SIP URI (RFC 3261 §19.1), and a SIP URI made
// into what a person reads. Pure: no DOM, no network.

/** What completes an address, or the words that say why it cannot be. */
export type Completed = { uri: string; error?: undefined } | { uri?: undefined; error: string };

/** Longest input that is looked at, in UTF-16 units. */
export const maxInput = 255;

const hostname = /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.?(?::\d{1,5})?$/i;
const ipv6 = /^\[[0-9a-f:.]+\](?::\d{1,5})?$/i;
const number = /^\+?[0-9]{2,20}$/;
const separators = /[\s().\-\/]/g; // RFC 3966 visual-separator, and what people write between digits

/** complete makes input a SIP URI. A name without a host is taken to live in domain. */
export function complete(input: string, domain: string): Completed {
  let s = input.trim();
  if (s === "") return { error: "Say whom to call: a name here, or a SIP address." };
  if (s.length > maxInput) return { error: "That address is too long." };
  if (/^sips:/i.test(s)) return { error: "Addresses that begin with “sips:” are not served here. Try it with “sip:”." };
  const scheme = /^(sip|tel):/i.exec(s);
  if (scheme) s = s.slice(scheme[0].length);
  else if (/^[a-z][a-z0-9+.-]*:/i.test(s) && !/^[^@]*:\d+$/.test(s)) {
    return { error: "Only SIP addresses and telephone numbers can be called." };
  }
  const digits = s.replace(separators, "");
  if (number.test(digits) && !s.includes("@")) return { uri: `sip:${digits}@${domain};user=phone` };
  if (scheme?.[1]?.toLowerCase() === "tel") return { error: "That is not a telephone number." };

  const at = s.lastIndexOf("@");
  const user = at < 0 ? s : s.slice(0, at);
  const host = at < 0 ? domain : s.slice(at + 1);
  if (user === "") return { error: "The name before the “@” is missing." };
  if (/[\s<>"\\?;,@]/.test(user)) return { error: "A name cannot hold spaces or the characters < > \" \\ ? ; , @" };
  if (!hostname.test(host) && !ipv6.test(host)) return { error: `“${host}” is not the name of a network.` };
  return { uri: `sip:${escapeUser(user)}@${host.toLowerCase()}` };
}

/** suffix is what complete would add to input, for showing behind it: "@ims.test" or nothing. */
export function suffix(input: string, domain: string): string {
  const s = input.trim();
  return s.includes("@") || /^[a-z]+:/i.test(s) || /^\+?[\d\s().\-\/]+$/.test(s) ? "" : `@${domain}`;
}

// escapeUser writes the user part with what RFC 3261 §25.1 lets stand as it is: unreserved, user-unreserved.
function escapeUser(user: string): string {
  return encodeURIComponent(unescape(user)).replace(/%(26|3D|2B|24|2F)/g, (m) => decodeURIComponent(m));
}

function unescape(s: string): string {
  try {
    return decodeURIComponent(s);
  } catch {
    return s; // a lone "%": taken as itself
  }
}

/** plain drops what could forge a line of text (controls, bidirectional overrides) and caps its length. */
export function plain(s: string, most = 64): string {
  // eslint-disable-next-line no-control-regex
  const t = s.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "").trim();
  const units = Array.from(t);
  return units.length > most ? units.slice(0, most - 1).join("") + "…" : t;
}

/** person is how to show somebody: the name that the network gave, else the address' own. */
export function person(uri: string, displayName?: string | null): { name: string; address: string } {
  const bare = uri.replace(/[;?].*$/, "");
  const user = unescape(bare.replace(/^sips?:/i, "").replace(/@.*$/, ""));
  return { name: plain(displayName ?? "") || plain(user) || "Somebody", address: plain(unescape(bare), 128) };
}

/** same tells whether two SIP URIs name one user (RFC 3261 §19.1.4, without parameters). */
export function same(a: string, b: string): boolean {
  const key = (u: string) => {
    const bare = u.replace(/[;?].*$/, "").replace(/^sips?:/i, "");
    const at = bare.lastIndexOf("@");
    return unescape(bare.slice(0, at)) + "@" + bare.slice(at + 1).toLowerCase();
  };
  return key(a) === key(b);
}
