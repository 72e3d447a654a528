// What matrix-js-sdk expects of a browser and Node 18 to 20 does not have. Imported before the SDK.
import "fake-indexeddb/auto";

// The SDK is used as it is published; Promise.withResolvers came with Node 22, CustomEvent with Node 19.
Promise.withResolvers ??= function withResolvers() {
  let resolve, reject;
  const promise = new this((onDone, onError) => {
    resolve = onDone;
    reject = onError;
  });
  return { promise, resolve, reject };
};
globalThis.CustomEvent ??= class CustomEvent extends Event {
  constructor(type, options = {}) {
    super(type, options);
    this.detail = options.detail ?? null;
  }
};
if (globalThis.crypto === undefined) {
  const { webcrypto } = await import("node:crypto");
  globalThis.crypto = webcrypto;
}

// stdout carries the protocol; everything that a library prints goes to stderr, and chatter nowhere.
const silent = () => {};
console.debug = console.trace = silent;
console.log = console.info = silent;
if (!process.env.RANVIER_JS_DEBUG) console.warn = silent;

export const quietLogger = {
  trace: silent,
  debug: silent,
  info: silent,
  warn: console.warn,
  error: (...words) => console.error(...words),
  getChild: () => quietLogger,
};
