// What a device has seen, in order, and those who wait to see something.

/** Is every key of `wanted` in `seen`, with an equal or itself matching value? */
export function matches(wanted, seen) {
  if (wanted === null || typeof wanted !== "object") return wanted === seen;
  if (seen === null || typeof seen !== "object") return false;
  return Object.entries(wanted).every(([key, value]) => matches(value, seen[key]));
}

export class Observations {
  constructor() {
    this.seen = [];
    this.waiters = new Set();
  }

  add(record) {
    this.seen.push(record);
    for (const waiter of [...this.waiters]) {
      if (matches(waiter.wanted, record)) waiter.resolve(record);
    }
  }

  find(wanted) {
    return this.seen.filter((record) => matches(wanted, record));
  }

  /** Resolve with the first record that matches, past or future; reject after `timeoutMs`. */
  wait(wanted, timeoutMs) {
    const earlier = this.find(wanted)[0];
    if (earlier) return Promise.resolve(earlier);
    return new Promise((resolve, reject) => {
      const waiter = { wanted };
      const timer = setTimeout(() => {
        this.waiters.delete(waiter);
        const last = JSON.stringify(this.seen.slice(-12));
        reject(new Error(`did not see ${JSON.stringify(wanted)} in ${timeoutMs} ms; saw last ${last}`));
      }, timeoutMs);
      waiter.resolve = (record) => {
        clearTimeout(timer);
        this.waiters.delete(waiter);
        resolve(record);
      };
      this.waiters.add(waiter);
    });
  }
}
