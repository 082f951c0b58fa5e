import type { State } from "@kvasir/state";
import type { Router, RouterLog } from "./router.ts";
import { sharesFromText } from "./shares-text.ts";

const NAME = "router";
/** Between two looks at what tenants were served. Larger: a leader that dies takes more of it along; smaller: more for Redis to do. */
const KEEP_MS = 500;
/** A new leader waits no longer for what the one before left. */
const RECALL_MAX_MS = 500;

/**
 * Carries tenants' counters from one leading router to the next: the leader leaves them in Redis as they change, whoever leads next takes them up
 * before it places. What was served in the last moment before a death is not in them.
 */
export class ShareKeeper {
  readonly #router: Router;
  readonly #state: State;
  readonly #log: RouterLog;
  readonly #timer: NodeJS.Timeout;
  #kept = "";
  #isKeeping = false;
  /** Of the election that was heard of last. */
  #latest = 0;

  constructor(router: Router, state: State, log: RouterLog) {
    this.#router = router;
    this.#state = state;
    this.#log = log;
    this.#timer = setInterval(() => void this.#keep(), KEEP_MS);
  }

  /** An election gave this token to the router; 0: to another one. */
  async elected(token: number): Promise<void> {
    this.#latest = token;
    if (token > 0) await this.#takeUp();
    // It may have been followed meanwhile.
    if (this.#latest === token) this.#router.setLeaderToken(token);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #takeUp(): Promise<void> {
    try {
      const late = new Promise<never>((_, reject) => {
        setTimeout(() => reject(new Error(`no answer in ${RECALL_MAX_MS} ms`)), RECALL_MAX_MS).unref();
      });
      const text = await Promise.race([this.#state.left(NAME), late]);
      if (text === undefined) return;
      const left = sharesFromText(text);
      this.#router.apply({ kind: "SharesRestored", left });
      const tenants = left.reduce((sum, { shares }) => sum + shares.tenants.length, 0);
      this.#log.info({ tenants }, "took up what the router that led before served its tenants");
    } catch (error) {
      this.#log.warn(
        { error: String(error) },
        "what the router that led before served its tenants is lost; all begin even",
      );
    }
  }

  async #keep(): Promise<void> {
    const { leaderToken } = this.#router;
    if (leaderToken === 0 || this.#isKeeping || !this.#state.isConnected) return;
    const text = JSON.stringify(this.#router.state.snapshotShares());
    if (text === this.#kept) return;
    this.#isKeeping = true;
    try {
      if (await this.#state.leave(NAME, leaderToken, text)) this.#kept = text;
    } catch {
      // The connection has logged the outage; the next look leaves it.
    } finally {
      this.#isKeeping = false;
    }
  }
}
