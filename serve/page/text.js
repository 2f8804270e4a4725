// Draws text safely: nothing in it can run. The rules are those of han/explain/html.py; a test compares the two.

const TAG = /<[A-Za-z/!][^<>]*>/g;
const BREAK = /^<br\b[^<>]*>$/i;
// Controls, invisible and bidirectional format characters. The joiners U+200C and U+200D stay: Persian and emoji need them.
const ODD =
  /([\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}])/u;
/** As ODD, with the joiners: for a word that stands alone. */
export const ALONE = new RegExp(ODD.source.replace("(", "(^[\\u200c\\u200d]$|"), "u");
const JOINS = /^[\u200c\u200d]$/; // the characters on its two sides
const TIED = /^[\p{M}\u200c\u200d]$/u; // to the character before it

/** An element with classes and children; a string becomes a text node, never markup. */
export function element(name, classes = "", ...children) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  made.append(...children);
  return made;
}

/** The text, its invisible characters as boxes with their code. */
export function visible(text, invisible = ODD) {
  return text.split(invisible).map((part, index) => {
    if (index % 2 === 0) return part;
    const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const box = element("i", "odd", code);
    box.title = `U+${code}, a character that cannot be seen`;
    return box;
  });
}

/** Text that is no word: line breaks stay, other visible characters are grey because the network did not read them. */
export function between(text) {
  const parts = [];
  let start = 0;
  for (const tag of text.matchAll(TAG)) {
    parts.push(...grey(text.slice(start, tag.index)));
    parts.push(...(BREAK.test(tag[0]) ? [element("br")] : grey(tag[0])));
    start = tag.index + tag[0].length;
  }
  return [...parts, ...grey(text.slice(start))];
}

/** points[start:end] in order: every word, and what lies between words with null. Spans count code points, as `points` does. */
export function* pieces(points, start, end, words) {
  for (const word of words) {
    if (start < word.start) yield [points.slice(start, word.start).join(""), null];
    yield [points.slice(word.start, word.end).join(""), word];
    start = word.end;
  }
  if (start < end) yield [points.slice(start, end).join(""), null];
}

/** Whether a mark or a joiner ties the word to its neighbour: then the two are drawn without a gap. */
export function isJoined(points, word) {
  return [word.start, word.end].some((cut) => JOINS.test(points[cut - 1] ?? "") || TIED.test(points[cut] ?? ""));
}

/** The text with spaces in place of the spans: every other code point stays where it was. */
export function blanked(points, spans) {
  const rest = [...points];
  for (const { start, end } of spans) rest.fill(" ", start, end);
  return rest.join("");
}

/** A share as a percentage with one decimal; a share between 0 and 1 never rounds to 0% or 100%. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1%";
  return share >= 0.9995 && share < 1 ? ">99.9%" : `${(100 * share).toFixed(1)}%`;
}

/** An effect in nats with its sign and two decimals; a dash where there is none. */
export function signed(effect) {
  if (effect === null || effect === undefined) return "–";
  return `${effect < 0 ? "−" : "+"}${Math.abs(effect).toFixed(2)}`;
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

function grey(text) {
  if (!text) return [];
  return text.trim() ? [element("span", "unread", ...visible(text))] : visible(text);
}
