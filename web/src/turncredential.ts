// The header TURN-Credential, in which the edge gives a relay credential with the 200 OK to a REGISTER
// (TR 33.872 §6.3.3, approach 1). The name is ours; none is registered. Pure: no DOM, no network.

/** What a WIC puts into its REGISTER to be given one. */
export const request = "TURN-Credential: request";

/** The credential. expires is in s since 1970, by the edge's clock. */
export interface Credential {
  urls: string[];
  username: string;
  credential: string;
  expires: number;
}

const mostHead = 16_384; // UTF-16 units of a message that are looked at
const mostURLs = 8;

/** ofRegister returns the credential in a 2xx answer to a REGISTER; undefined for any other message. */
export function ofRegister(message: string): Credential | undefined {
  const value = registered(message) ? header(message, "turn-credential") : undefined;
  return value === undefined ? undefined : parse(value);
}

/** registered tells whether a message is a 2xx answer to a REGISTER. */
export function registered(message: string): boolean {
  return /^SIP\/2\.0 2\d\d /.test(message) && /^\d+\s+REGISTER$/i.test(header(message, "cseq") ?? "");
}

/** parse reads the header's value: uri="…" once or more, username="…", password="…", expires=…. */
export function parse(value: string): Credential | undefined {
  const c: Credential = { urls: [], username: "", credential: "", expires: 0 };
  for (const [, name, quoted, token] of value.matchAll(/(?:^|,)\s*([a-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))/gi)) {
    const v = quoted?.replace(/\\(.)/g, "$1") ?? token ?? "";
    switch (name?.toLowerCase()) {
      case "uri":
        if (/^turns?:/i.test(v) && c.urls.length < mostURLs) c.urls.push(v);
        break;
      case "username":
        c.username = v;
        break;
      case "password":
        c.credential = v;
        break;
      case "expires":
        c.expires = Number(v);
        break;
    }
  }
  return c.urls.length > 0 && c.username !== "" && c.credential !== "" && Number.isFinite(c.expires) && c.expires > 0 ? c : undefined;
}

function header(message: string, name: string): string | undefined {
  const head = message.slice(0, mostHead).split("\r\n\r\n", 1)[0]!.replace(/\r\n[ \t]+/g, " "); // folded lines, RFC 3261 §7.3.1
  for (const line of head.split("\r\n").slice(1)) {
    const colon = line.indexOf(":");
    if (colon > 0 && line.slice(0, colon).trim().toLowerCase() === name) return line.slice(colon + 1).trim();
  }
  return undefined;
}
