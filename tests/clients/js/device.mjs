// One logged-in device: matrix-js-sdk with its Rust crypto, and a log of what its user would have seen.
import { quietLogger } from "./environment.mjs";
import * as sdk from "matrix-js-sdk";
import { decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/index.js";
import { Observations, matches } from "./observations.mjs";
import { Verifications } from "./verification.mjs";

const VERIFY_METHODS = ["m.sas.v1"];

/** Make an account, or a new session of one; returns user_id, device_id and access_token. */
export async function register({ url, username, password }) {
  const client = sdk.createClient({ baseUrl: url, logger: quietLogger });
  const flows = { username, password, initial_device_display_name: "js" };
  const ask = (auth) => client.registerRequest({ ...flows, auth });
  return withInteractiveAuth(ask, (session) => ({ type: "m.login.dummy", session }));
}

export async function login({ url, username, password }) {
  const client = sdk.createClient({ baseUrl: url, logger: quietLogger });
  const identifier = { type: "m.id.user", user: username };
  return client.loginRequest({ type: "m.login.password", identifier, password });
}

/** Ask; when the server wants interactive authentication, ask again with what `stage` makes of its session. */
async function withInteractiveAuth(ask, stage) {
  try {
    return await ask(undefined);
  } catch (error) {
    if (error.httpStatus !== 401 || !error.data?.session) throw error;
    return ask(stage(error.data.session));
  }
}

export class Device {
  constructor({ url, user_id, device_id, access_token, password, name }) {
    this.session = { url, user_id, device_id, access_token, password, name };
    this.observations = new Observations();
    this.recoveryKey = undefined;
  }

  // ---- life ----

  /** Start (again) from what this device stored: crypto keys, rooms and the sync token. */
  async start({ timeout_ms = 30000 } = {}) {
    const { url, user_id, device_id, access_token, name } = this.session;
    this.store = new sdk.IndexedDBStore({ indexedDB: globalThis.indexedDB, dbName: `rooms-${name}` });
    this.client = sdk.createClient({
      baseUrl: url, userId: user_id, deviceId: device_id, accessToken: access_token, store: this.store,
      logger: quietLogger, verificationMethods: VERIFY_METHODS, timelineSupport: true,
      cryptoCallbacks: {
        getSecretStorageKey: async ({ keys }) => this.recoveryKey && [Object.keys(keys)[0], this.recoveryKey],
        cacheSecretStorageKey: (_id, _info, key) => { this.recoveryKey = key; },
      },
    });
    await this.store.startup();
    await this.client.initRustCrypto({ useIndexedDB: true, cryptoDatabasePrefix: `crypto-${name}` });
    this.verifications = new Verifications(this.client, this.observations);
    this.#observe();
    this.observations.add({ kind: "started", since: await this.store.getSavedSyncToken() });
    const ready = new Promise((resolve) => this.client.on(sdk.ClientEvent.Sync, (state) => {
      if (state === "PREPARED" || state === "SYNCING") resolve();
    }));
    await this.client.startClient({ initialSyncLimit: 30, threadSupport: true, pollTimeout: 20000 });
    await withTimeout(ready, timeout_ms, "the first sync");
  }

  /** Write what a real client has on disk at some moment. */
  async checkpoint() {
    await this.store.save(true);
    return { since: await this.store.getSavedSyncToken() };
  }

  /** Be gone without a word to the server, as after a crash; start() continues from the last checkpoint. */
  async crash() {
    this.client.stopClient();
    this.client.http.abort?.();
    this.client.removeAllListeners();
    this.observations = new Observations();
  }

  #observe() {
    const client = this.client;
    const see = (record) => this.observations.add(record);
    client.on(sdk.RoomEvent.Timeline, (event, room, toStart) => this.#seeEvent(event, Boolean(toStart)));
    client.on(sdk.MatrixEventEvent.Decrypted, (event) => this.#seeEvent(event, false));
    client.on(sdk.MatrixEventEvent.Replaced, (event) =>
      see({ kind: "edited", event_id: event.getId(), body: event.getContent().body }));
    client.on(sdk.RoomEvent.Redaction, (event, room) =>
      see({ kind: "redacted", room_id: room.roomId, event_id: event.getAssociatedId(), sender: event.getSender() }));
    client.on(sdk.RoomEvent.Receipt, (event, room) =>
      see({ kind: "receipt", room_id: room.roomId, content: event.getContent() }));
    client.on(sdk.RoomMemberEvent.Typing, (_event, member) =>
      see({ kind: "typing", room_id: member.roomId, user_id: member.userId, typing: member.typing }));
    client.on(sdk.RoomEvent.MyMembership, (room, membership) =>
      see({ kind: "membership", room_id: room.roomId, membership }));
    client.on(sdk.ClientEvent.Sync, (state, _before, data) =>
      see({ kind: "sync", state, since: data?.oldSyncToken ?? null, error: data?.error ? String(data.error) : null }));
    const seeThread = (thread) =>
      see({ kind: "thread", root: thread.id, length: thread.length, last: thread.replyToEvent?.getId() ?? null });
    client.on(sdk.ClientEvent.Room, (room) => {
      for (const change of ["Thread.new", "Thread.update", "Thread.newReply"]) room.on(change, seeThread);
    });
  }

  #seeEvent(event, older) {
    const unread = event.isEncrypted() && !event.clearEvent && !event.isDecryptionFailure();
    if (event.status !== null || unread || event.isBeingDecrypted()) return;
    this.observations.add({
      kind: "event", older, room_id: event.getRoomId(), event_id: event.getId(), sender: event.getSender(),
      type: event.getType(), content: event.getContent(), encrypted: event.isEncrypted(),
      failed: event.isDecryptionFailure(), thread_root: event.threadRootId ?? null,
    });
  }

  wait({ wanted, timeout_ms = 30000 }) {
    return this.observations.wait(wanted, timeout_ms);
  }

  seen({ wanted = {} }) {
    return this.observations.find(wanted);
  }

  // ---- rooms ----

  async create_room({ options }) {
    return (await this.client.createRoom(options)).room_id;
  }

  async join({ room_id }) {
    await this.client.joinRoom(room_id);
  }

  async invite({ room_id, user_id }) {
    await this.client.invite(room_id, user_id);
  }

  /** Resolve once this device's sync shows `membership` in the room, and that the room is encrypted if asked. */
  async settled({ room_id, members, timeout_ms = 30000 }) {
    const good = () => members.every((user) =>
      this.client.getRoom(room_id)?.getMember(user)?.membership === "join");
    await this.#until(good, timeout_ms, `members ${members} of ${room_id}`);
  }

  async #until(good, timeoutMs, what) {
    if (good()) return;
    let check;
    const done = new Promise((resolve) => {
      check = () => good() && resolve();
      this.client.on(sdk.RoomStateEvent.Events, check);
      this.client.on(sdk.ClientEvent.Sync, check);
    });
    try {
      await withTimeout(done, timeoutMs, what);
    } finally {
      this.client.off(sdk.RoomStateEvent.Events, check);
      this.client.off(sdk.ClientEvent.Sync, check);
    }
  }

  async send({ room_id, type = "m.room.message", content, thread_root = null }) {
    return (await this.client.sendEvent(room_id, thread_root, type, content)).event_id;
  }

  async redact({ room_id, event_id, reason }) {
    return (await this.client.redactEvent(room_id, event_id, undefined, { reason })).event_id;
  }

  async typing({ room_id, typing }) {
    await this.client.sendTyping(room_id, typing, 20000);
  }

  async receipt({ room_id, event_id, type = "m.read", unthreaded = false }) {
    const event = this.client.getRoom(room_id).findEventById(event_id);
    await this.client.sendReadReceipt(event, type, unthreaded);
  }

  /** What the room now shows of an event: after edits, redaction, reactions and thread replies. */
  async shown({ room_id, event_id }) {
    const room = this.client.getRoom(room_id);
    const event = room.findEventById(event_id);
    const thread = room.getThread(event_id);
    const reactions = room.relations.getChildEventsForEvent(event_id, "m.annotation", "m.reaction");
    return {
      body: event?.getContent().body ?? null,
      edited: Boolean(event?.replacingEventId()),
      redacted: event?.isRedacted() ?? false,
      reactions: Object.fromEntries((reactions?.getSortedAnnotationsByKey() ?? []).map(([key, set]) => [key, set.size])),
      thread: thread ? { length: thread.length, last: thread.replyToEvent?.getId() ?? null } : null,
      readers: event ? room.getUsersReadUpTo(event) : [],
      notifications: room.getUnreadNotificationCount("total"),
    };
  }

  /** Page back through the room's whole history, over the gaps, as somebody who scrolls up. */
  async scroll_to_start({ room_id, max_pages = 100 }) {
    const room = this.client.getRoom(room_id);
    const shown = new sdk.TimelineWindow(this.client, room.getUnfilteredTimelineSet());
    await shown.load(undefined, 20);
    for (let page = 0; shown.canPaginate("b"); page += 1) {
      if (page === max_pages) throw new Error(`the history of ${room_id} does not end`);
      await shown.paginate("b", 50);
    }
    const events = shown.getEvents();
    await Promise.all(events.map((event) => this.client.decryptEventIfNeeded(event)));
    return events.map((event) => ({
      event_id: event.getId(), type: event.getType(), body: event.getContent().body ?? null,
      failed: event.isDecryptionFailure(),
    }));
  }

  // ---- trust ----

  /** Make cross-signing keys, secret storage and a key backup; returns the recovery key to write on paper. */
  async bootstrap() {
    const crypto = this.client.getCrypto();
    const { user_id, password } = this.session;
    await crypto.bootstrapCrossSigning({
      authUploadDeviceSigningKeys: (ask) => withInteractiveAuth((auth) => ask(auth ?? null), (session) => ({
        type: "m.login.password", identifier: { type: "m.id.user", user: user_id }, password, session,
      })),
    });
    const key = await crypto.createRecoveryKeyFromPassphrase();
    await crypto.bootstrapSecretStorage({
      createSecretStorageKey: async () => key, setupNewSecretStorage: true, setupNewKeyBackup: true,
    });
    return key.encodedPrivateKey;
  }

  /** On a new device: trust this device and fetch the backed-up room keys with the recovery key. */
  async recover({ recovery_key }) {
    const crypto = this.client.getCrypto();
    this.recoveryKey = decodeRecoveryKey(recovery_key);
    await crypto.userHasCrossSigningKeys(this.session.user_id, true);
    await crypto.bootstrapCrossSigning({});
    await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
    await crypto.checkKeyBackupAndEnable();
    return crypto.restoreKeyBackup();
  }

  /** Resolve once every room key that this device holds is in the backup on the server. */
  async backed_up({ timeout_ms = 30000 } = {}) {
    const crypto = this.client.getCrypto();
    await this.#untilEvent("crypto.keyBackupSessionsRemaining", (left) => left === 0, timeout_ms, async () => {
      const keys = await crypto.exportRoomKeys();
      const info = await this.client.http.authedRequest("GET", "/room_keys/version");
      return info.count >= keys.length;
    });
  }

  async #untilEvent(name, good, timeoutMs, already) {
    let check;
    const done = new Promise((resolve) => {
      check = (value) => good(value) && resolve();
      this.client.on(name, check);
    });
    try {
      if (await already()) return;
      await withTimeout(done, timeoutMs, name);
    } finally {
      this.client.off(name, check);
    }
  }

  async trust({ user_id, device_id }) {
    const crypto = this.client.getCrypto();
    await crypto.getUserDeviceInfo([user_id], true);
    const user = await crypto.getUserVerificationStatus(user_id);
    const device = device_id ? await crypto.getDeviceVerificationStatus(user_id, device_id) : null;
    return {
      user_verified: user.isCrossSigningVerified(),
      device_signed: device?.signedByOwner ?? false,
      device_verified: device?.crossSigningVerified ?? false,
      ready: await crypto.isCrossSigningReady(),
    };
  }

  /** Resolve once `trust` is as wanted: signatures arrive by /sync and key queries, after the emoji. */
  async trusts({ wanted, timeout_ms = 30000, ...of }) {
    const deadline = Date.now() + timeout_ms;
    for (;;) {
      const changed = this.#once(["userTrustStatusChanged", "crypto.devicesUpdated", "crossSigning.keysChanged",
        sdk.ClientEvent.Sync], deadline - Date.now());
      const trust = await this.trust(of);
      if (matches(wanted, trust)) return trust;
      if (!await changed) throw new Error(`wanted ${JSON.stringify(wanted)}, is ${JSON.stringify(trust)}`);
    }
  }

  /** Resolve to true with the next of these events of the client, to false after `timeoutMs`. */
  #once(names, timeoutMs) {
    return new Promise((resolve) => {
      const end = (value) => {
        clearTimeout(timer);
        for (const name of names) this.client.off(name, fired);
        resolve(value);
      };
      const fired = () => end(true);
      const timer = setTimeout(() => end(false), Math.max(timeoutMs, 0));
      for (const name of names) this.client.on(name, fired);
    });
  }

  verify_own() {
    return this.verifications.requestOwn();
  }

  verify_user(args) {
    return this.verifications.requestUser(args);
  }

  verify_accept(args) {
    return this.verifications.accept(args);
  }

  verify_start(args) {
    return this.verifications.start(args);
  }

  verify_confirm(args) {
    return this.verifications.confirm(args);
  }

  verify_mismatch(args) {
    return this.verifications.mismatch(args);
  }
}

function withTimeout(promise, timeoutMs, what) {
  let timer;
  const late = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} in ${timeoutMs} ms`)), timeoutMs);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
