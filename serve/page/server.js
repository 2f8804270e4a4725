// The three requests of the page, and its error messages in plain words.

const STORED = "han-key";
let key = stored();

/** A message for the reader. `again`: whether the same request may succeed later; `asksKey`: whether the server requires a key. */
export class Trouble extends Error {
  constructor(message, { again = false, asksKey = false } = {}) {
    super(message);
    Object.assign(this, { again, asksKey });
  }
}

export const about = () => ask("v1/model");

export const sample = (signal) => ask(`v1/samples/random?seed=${crypto.getRandomValues(new Uint32Array(1))[0] >>> 1}`, { signal });

/** effects: "sentences", or "exact_words" for those of every word too. */
export async function score(text, signal, effects = "sentences") {
  const body = JSON.stringify({ inputs: text, attention: "words", effects });
  const answer = await ask("v1/score", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  return answer.results[0];
}

/** Send this key from now on; it lives as long as the tab. */
export function useKey(given) {
  key = given;
  try {
    sessionStorage.setItem(STORED, given);
  } catch {
    // a browser may forbid storage: then the key lasts as long as the page
  }
}

function stored() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null;
  }
}

async function ask(path, { headers = {}, ...options } = {}) {
  const sent = key;
  let response;
  try {
    response = await fetch(path, { ...options, headers: sent ? { ...headers, Authorization: `Bearer ${sent}` } : headers });
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new Trouble("The server cannot be reached. Your text is still here.", { again: true });
  }
  if (response.ok) {
    const answer = await response.json();
    options.signal?.throwIfAborted();
    return answer;
  }
  if (response.status === 401 && key !== sent) return ask(path, { headers, ...options }); // a key was given while this was under way
  const failure = await response.json().catch(() => ({}));
  options.signal?.throwIfAborted();
  throw trouble(response, failure.error?.code, failure.request_id);
}

function trouble(response, code, requestId) {
  const wait = Number(response.headers.get("Retry-After"));
  const later = wait ? `in ${wait} second${wait === 1 ? "" : "s"}` : "in a moment";
  switch (response.status) {
    case 401:
      return new Trouble(key ? "The server did not accept this key." : "", { asksKey: true });
    case 413:
      return new Trouble("This review is longer than the server takes. Your text is still here: shorten it and score it again.");
    case 422:
      if (code === "empty_text") return new Trouble("There is no word to read in this text.");
      break;
    case 429:
      return new Trouble(`The server is busy. Your text is still here: try again ${later}.`, { again: true });
    case 503:
      return new Trouble(`The model is not ready. Your text is still here: try again ${later}.`, { again: true });
    case 408:
    case 504:
      return new Trouble("The server did not answer in time. Your text is still here.", { again: true });
  }
  const which = [response.status, code, requestId && `request ${requestId}`].filter(Boolean).join(", ");
  if (response.status < 500) return new Trouble(`The server refused this text (${which}).`);
  return new Trouble(`The server failed (${which}). Your text is still here.`, { again: true });
}
