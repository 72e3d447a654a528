// Emoji verification, step by step, so that the test compares what two people would compare.
import { CryptoEvent, VerificationPhase, VerificationRequestEvent, VerifierEvent }
  from "matrix-js-sdk/lib/crypto-api/index.js";

const SAS = "m.sas.v1";

export class Verifications {
  constructor(client, observations) {
    this.client = client;
    this.observations = observations;
    this.requests = new Map();
    client.on(CryptoEvent.VerificationRequestReceived, (request) => this.follow(request));
  }

  /** Watch a request that was made or received; returns its transaction ID. */
  follow(request) {
    const id = request.transactionId;
    const entry = { request, verifier: undefined, sas: undefined };
    this.requests.set(id, entry);
    this.observations.add({ kind: "verification_request", id, from: request.otherUserId, mine: request.initiatedByMe });
    let last;
    const onChange = () => {
      if (request.phase === last) return;
      last = request.phase;
      if (request.phase === VerificationPhase.Started && !entry.verifier) this.#run(id, entry, request.verifier);
      this.observations.add({ kind: "verification", id, phase: VerificationPhase[request.phase],
        cancelled: request.cancellationCode ?? null });
    };
    request.on(VerificationRequestEvent.Change, onChange);
    onChange();
    return id;
  }

  async requestOwn() {
    return this.follow(await this.client.getCrypto().requestOwnUserVerification());
  }

  async requestUser({ user_id, room_id }) {
    return this.follow(await this.client.getCrypto().requestVerificationDM(user_id, room_id));
  }

  accept({ id }) {
    return this.requests.get(id).request.accept();
  }

  async start({ id }) {
    const entry = this.requests.get(id);
    this.#run(id, entry, await entry.request.startVerification(SAS));
  }

  #run(id, entry, verifier) {
    if (entry.verifier) return;
    entry.verifier = verifier;
    verifier.on(VerifierEvent.ShowSas, (sas) => this.#show(id, entry, sas));
    const shown = verifier.getShowSasCallbacks();
    if (shown) this.#show(id, entry, shown);
    verifier.verify().catch((error) => this.observations.add({ kind: "verification_error", id, error: String(error) }));
  }

  #show(id, entry, sas) {
    entry.sas = sas;
    this.observations.add({ kind: "sas", id, emoji: sas.sas.emoji.map(([, name]) => name) });
  }

  confirm({ id }) {
    return this.requests.get(id).sas.confirm();
  }

  mismatch({ id }) {
    this.requests.get(id).sas.mismatch();
  }
}
