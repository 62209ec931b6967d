// What the page knows, where it comes from, and who is told: the only file that talks to the server.

export const isLive = document.querySelector('meta[name="dt-mode"]').content === "live";

/** run.json, chain.json; the round and the uid shown; `following`: the newest round is shown as it comes. */
export const state = { run: null, chain: null, round: null, shown: null, following: true, uid: null, trouble: null };

const listeners = new Map();
const due = new Set();
const order = new Set(); // of all that was said to be called, so that main.js comes after the parts

/** Calls `draw` in the next frame after each change of any of the topics (run, round, uid, chain, theme, ...). */
export function on(topics, draw) {
  order.add(draw);
  for (const topic of topics.split(" ")) listeners.set(topic, [...(listeners.get(topic) ?? []), draw]);
}

/** Tells of a change: each listener is called once in the next frame, however many changes there were. */
export function tell(topic) {
  if (!due.size) requestAnimationFrame(() => {
    const now = [...order].filter((draw) => due.has(draw));
    due.clear();
    for (const draw of now) draw();
  });
  for (const draw of listeners.get(topic) ?? []) due.add(draw);
}

/** The text of a JSON answer; throws an Error whose message is one line that can be shown. */
async function get(url, signal) {
  let answer;
  try {
    answer = await fetch(url, { cache: "no-cache", signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The page's server does not answer.");
  }
  const text = await answer.text();
  if (answer.ok) return text;
  let body = null;
  try { body = JSON.parse(text); } catch { /* no JSON: the status has to do */ }
  const said = answer.status === 404 ? "not kept in this copy" : `the server said ${answer.status}`;
  throw new Error(body?.error ?? said);
}

/** A document's loader: of several calls the newest wins; what differs from before enters the state and is told. */
function loader(place, failed) {
  let running = null;
  let last = null;
  return async (url) => {
    running?.abort();
    const mine = (running = new AbortController());
    let text = null;
    if (url != null) {
      try {
        text = await get(url, mine.signal);
      } catch (error) {
        if (error.name === "AbortError") return;
        text = JSON.stringify(failed(error.message));
      }
    }
    if (mine !== running || text === last) return;
    last = text;
    state[place] = text === null ? null : JSON.parse(text);
    tell(place);
  };
}

const kept = () => state.run?.rounds.index ?? [];
const loadRound = loader("round", (error) => ({ index: state.shown, error }));
const loadUid = loader("uid", (error) => ({ uid: wantedUid, error }));
const loadChain = loader("chain", () => null);
let wantedUid = null;

/** Shows round `index`, or with null the newest and whatever comes after it. */
export function showRound(index) {
  const newest = kept().at(-1) ?? null;
  state.following = index == null;
  const wanted = state.following ? newest : index;
  if (wanted == null) return;
  if (wanted !== state.shown) { state.shown = wanted; tell("shown"); }
  tell("following");
  loadRound(`data/round/${wanted}.json`);
}

/** Opens the panel of a uid, or with null closes it. */
export function showUid(uid) {
  wantedUid = uid;
  loadUid(uid == null ? null : `data/uid/${uid}.json`);
}

async function refresh() {
  try {
    const run = JSON.parse(await get("data/run.json"));
    if (run.revision !== state.run?.revision) { state.run = run; tell("run"); }
    state.trouble = null;
  } catch (error) {
    state.trouble = error.message;
    tell("connection");
    return;
  }
  showRound(state.following ? null : state.shown);
  if (wantedUid != null) showUid(wantedUid);
  loadChain("data/chain.json");
}

/** At most one refresh at a time, and one more if something changed meanwhile. */
const REST_MS = 700;
let busy = false;
let again = false;
async function changed() {
  if (busy) { again = true; return; }
  busy = true;
  await refresh();
  await new Promise((wake) => setTimeout(wake, REST_MS));
  busy = false;
  if (again) { again = false; changed(); }
}

/** Newest step of each uid that trains now, from the stream. */
export const steps = new Map();
export const connection = { word: isLive ? "connecting" : "copy", since: Date.now() };

function connected(word) {
  if (connection.word === word) return;
  Object.assign(connection, { word, since: Date.now() });
  tell("connection");
}

function listen() {
  const stream = new EventSource("data/stream");
  stream.addEventListener("open", () => { connected("live"); changed(); });
  stream.addEventListener("change", (event) => {
    const news = JSON.parse(event.data);
    for (const [uid, step] of Object.entries(news.step ?? {})) steps.set(Number(uid), step);
    tell("steps");
    if (news.revision !== state.run?.revision) changed();
  });
  stream.addEventListener("error", () => {
    connected("disconnected");
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

/** Text from the newest checkpoint and an older one; throws an Error of one line. */
export async function sample(request) {
  const answer = await fetch("data/sample", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request),
  }).catch(() => { throw new Error("The page's server does not answer."); });
  const body = await answer.json().catch(() => null);
  if (answer.ok && body && !body.error) return body;
  const taken = "Somebody else's text is being written: try again in a moment.";
  throw new Error(body?.error ?? (answer.status === 409 ? taken : `The server said ${answer.status}.`));
}

export function start() {
  changed();
  if (isLive) listen();
}
