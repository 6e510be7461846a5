// The part of the package "events" that JsSIP's own declarations lean on.
declare module "events" {
  export class EventEmitter {}
}
