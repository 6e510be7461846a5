// The part of Node's own modules that these tests use.
declare module "node:test" {
  export default function test(name: string, body: () => void | Promise<void>): void;
}
declare module "node:assert/strict" {
  interface Assert {
    equal(a: unknown, b: unknown, message?: string): void;
    deepEqual(a: unknown, b: unknown, message?: string): void;
    match(s: string, r: RegExp, message?: string): void;
    ok(v: unknown, message?: string): void;
    throws(f: () => unknown, check?: (e: Error) => boolean, message?: string): void;
  }
  const assert: Assert;
  export default assert;
}
