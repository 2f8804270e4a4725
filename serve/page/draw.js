// Draws a score on its text. Each row is a sentence of the whole review; muting changes only the numbers.

import { ALONE, between, blanked, count, element, isJoined, percent, pieces, signed, visible } from "./text.js";

const NUM_SHADES = 20; // as in han/explain/html.py
const NUM_TOP_WORDS = 3;
const $ = (id) => document.getElementById(id);

/** A scored text: `whole` is the answer to all of it, `now` the answer without the muted sentences (null until it arrives). */
export class Reading {
  constructor(text, whole, caption) {
    this.text = text;
    this.points = Array.from(text); // one entry a code point
    this.whole = whole;
    this.now = whole;
    this.caption = caption;
    this.muted = new Set(); // numbers of sentences, from 0
    this.effects = false; // whether effects are drawn, not attention
  }

  /** The text with every muted sentence blanked. */
  get rest() {
    return blanked(this.points, [...this.muted].map((number) => this.whole.sentences[number]));
  }

  /**
   * Words and share of each row: its sentence's. Where the rest of a text falls into other sentences than the whole did, a sentence's
   * attention goes to the rows of its words, by their attention, and its effect to the row of its first word.
   */
  rows() {
    const rows = this.whole.sentences.map(() => ({ words: [], share: 0, effect: null }));
    let row = 0;
    for (const sentence of this.now?.sentences ?? []) {
      const parts = new Map();
      let first = true;
      for (const { start, end, attention, effect } of sentence.words) {
        while (row + 1 < rows.length && start >= this.whole.sentences[row + 1].start) row++;
        rows[row].words.push({ start, end, attention, effect, share: attention * sentence.attention });
        if (first && sentence.effect !== null) rows[row].effect = (rows[row].effect ?? 0) + sentence.effect;
        first = false;
        parts.set(row, (parts.get(row) ?? 0) + attention);
      }
      const all = [...parts.values()].reduce((sum, part) => sum + part);
      for (const [row, part] of parts) rows[row].share += sentence.attention * (part / all);
    }
    return rows;
  }
}

/** Draw a new reading: first the fixed parts, then the numbers. */
export function draw(reading) {
  const { sentences, probabilities } = reading.whole;
  $("caption").textContent = reading.caption;
  $("caption").hidden = !reading.caption;
  answer(".classes").replaceChildren(
    ...Object.keys(probabilities).map((label) => element("li", "", element("bdi", "", label), bar("was"), element("span", "number"))),
  );
  answer(".sentences").replaceChildren(...sentences.map((_, number) => emptyRow(number)));
  drawNumbers(reading);
  $("answer").hidden = false;
}

/** Draw the parts that muting changes. Until the answer arrives, the old numbers stay, faded. */
export function drawNumbers(reading) {
  $("answer").classList.toggle("waiting", !reading.now);
  $("muting").classList.toggle("on", reading.muted.size > 0);
  $("unmute").hidden = reading.muted.size === 0;
  $("move").textContent = moved(reading) || "To see what moves the answer, mute a sentence.";
  answer(".sentences").querySelectorAll(".row").forEach((row, number) => drawMuted(row, reading.muted.has(number)));
  if (!reading.now) return;
  drawVerdict(reading);
  const rows = reading.rows();
  const longest = Math.max(...rows.map((row) => row.share));
  const largest = rows.reduce((most, row) => row.words.reduce((most, word) => Math.max(most, value(reading, word)), most), 0);
  const strongest = Math.max(...rows.map((row) => Math.abs(row.effect ?? 0)));
  answer(".sentences").querySelectorAll(".row").forEach((row, number) => {
    if (reading.effects) drawEffect(row, reading, number, rows[number].effect, strongest);
    else drawShare(row, reading, number, rows[number].share, longest);
    drawText(row.querySelector(".raw"), reading, number, rows[number].words, largest);
    tint(row.querySelector(".raw"), reading.effects && !largest ? (rows[number].effect ?? 0) / (strongest || 1) : 0);
  });
  drawBalance(reading);
  drawTable(reading);
}

/** Draw the table. A closed table stays empty: a long review has thousands of rows. */
export function drawTable(reading) {
  const rows = $("as-table").open && reading.now ? reading.rows() : [];
  $("best-words").textContent = showsWordEffects(reading) ? "Words of the largest effect" : "Words it looked at most";
  answer("tbody").replaceChildren(...rows.map((row, number) => tableRow(reading, number, row)));
}

/** The effect of muting in words; empty if nothing is muted. */
export function moved({ whole, now, muted }) {
  if (!muted.size) return "";
  const lead = `${count(muted.size, "sentence")} muted: `;
  if (!now) return `${lead}scoring the rest…`;
  const after = now.probabilities[whole.label];
  const tenths = Math.round(1000 * after) - Math.round(1000 * whole.probability); // of the displayed numbers
  const sign = tenths < 0 ? "−" : tenths > 0 ? "+" : "±";
  const turned = now.label === whole.label ? "" : `, now ${now.label}`;
  const points = `${sign}${Math.abs(tenths / 10).toFixed(1)} points`;
  return `${lead}${whole.label} ${percent(whole.probability)} → ${percent(after)}, ${points}${turned}`;
}

function drawVerdict({ whole, now, muted }) {
  const labels = Object.keys(now.probabilities);
  answer(".verdict").className = `verdict ${kind(now.label, labels)}`;
  answer(".verdict").replaceChildren(element("bdi", "", now.label), " ", element("span", "number", percent(now.probability)));
  answer(".classes").querySelectorAll("li").forEach((row, index) => {
    const [label, probability] = Object.entries(now.probabilities)[index];
    row.className = `${kind(label, labels)}${label === now.label ? " chosen" : ""}`;
    row.querySelector("i").style.width = `${100 * probability}%`;
    row.querySelector(".was").style.setProperty("--was", `${100 * whole.probabilities[label]}%`);
    row.querySelector(".was").classList.toggle("moved", muted.size > 0);
    row.querySelector(".number").textContent = percent(probability);
  });
  $("warnings").replaceChildren(...warnings(now).map((warning) => element("p", "warning", warning)));
  const facts = [count(now.num_tokens, "token")];
  if (now.num_unknown) facts.push(`${now.num_unknown.toLocaleString("en")} unknown`);
  if (now.num_characters_cut) facts.push(`${count(now.num_characters_cut, "character")} not read`);
  $("facts").replaceChildren(`${facts.join(" · ")} · model `, element("code", "", now.model));
  answer(".key").classList.toggle("has-unknown", now.num_unknown > 0);
}

/** Reasons not to trust an answer, as in han/explain/pieces.py. */
export function warnings({ unfamiliar, uncertain, num_unknown, num_tokens }) {
  const unknown = `${num_unknown.toLocaleString("en")} of ${num_tokens.toLocaleString("en")} tokens are unknown to the model.`;
  return [
    ...(unfamiliar ? [`${unknown} Do not trust this answer.`] : []),
    ...(uncertain ? ["The model is uncertain about this review."] : []),
  ];
}

function emptyRow(number) {
  const button = element("button", "share", element("span", "number"), bar("chosen"));
  button.type = "button";
  const text = element("p", "raw");
  text.dir = "auto";
  const row = element("li", "row", button, text);
  row.dataset.number = number;
  return row;
}

function drawMuted(row, muted) {
  row.classList.toggle("muted", muted);
  row.querySelector(".share").setAttribute("aria-pressed", muted);
}

function drawShare(row, reading, number, share, longest) {
  const button = row.querySelector(".share");
  const says = reading.muted.has(number) ? "muted" : percent(share);
  button.setAttribute("aria-label", `Mute sentence ${number + 1} of ${reading.whole.sentences.length}: ${says}`);
  button.querySelector(".number").textContent = says;
  button.querySelector(".bar").className = "bar chosen";
  button.querySelector(".bar i").style.width = `${(100 * share) / longest}%`;
}

/** The bar and the number of a sentence's effect. */
function drawEffect(row, reading, number, effect, strongest) {
  const button = row.querySelector(".share");
  const says = reading.muted.has(number) ? "muted" : signed(effect);
  button.setAttribute("aria-label", `Mute sentence ${number + 1} of ${reading.whole.sentences.length}: effect ${says}`);
  button.querySelector(".number").textContent = says;
  button.querySelector(".bar").className = `bar chosen ${side(effect)}`;
  button.querySelector(".bar i").style.width = `${(100 * Math.abs(effect ?? 0)) / (strongest || 1)}%`;
}

function drawBalance({ effects, now }) {
  const parts = effects ? now.effects : null;
  $("answer").classList.toggle("effects", effects);
  $("balance").hidden = !parts;
  if (!parts) return;
  const lead = `Evidence for ${now.label} ${signed(parts.evidence)}`;
  $("balance").textContent =
    parts.sum === null
      ? `${lead}. The only sentence has no effect, because nothing would be left.`
      : `${lead} = ${signed(parts.nothing)} without text, ${signed(parts.sum)} from the sentences one by one, ` +
        `${signed(parts.interaction)} from their interaction (nats).`;
}

function tint(paragraph, share) {
  paragraph.className = `raw ${share ? side(share) : ""}`.trim();
  paragraph.style.setProperty("--e", Math.round(NUM_SHADES * Math.abs(share)) / NUM_SHADES);
}

function drawText(paragraph, reading, number, words, largest) {
  const { sentences } = reading.whole;
  const start = number === 0 ? 0 : sentences[number].start;
  const end = number + 1 < sentences.length ? sentences[number + 1].start : reading.points.length;
  paragraph.replaceChildren();
  for (const [text, word] of pieces(reading.points, start, end, words)) {
    paragraph.append(...(word ? [drawnWord(text, word, reading, largest, isJoined(reading.points, word))] : between(text)));
  }
}

function drawnWord(text, word, reading, largest, joined) {
  const drawn = element("span", joined ? "w joined" : "w", ...visible(text));
  drawn.tabIndex = -1;
  drawn.style.setProperty("--a", Math.round((NUM_SHADES * value(reading, word)) / (largest || 1)) / NUM_SHADES);
  if (reading.effects && word.effect !== null) {
    drawn.classList.add(side(word.effect));
    drawn.effect = `effect ${signed(word.effect)} nats`;
  }
  drawn.dataset.sentence = percent(word.attention);
  drawn.dataset.review = percent(word.share);
  return drawn;
}

function tableRow(reading, number, { words, share, effect }) {
  const { start, end } = reading.whole.sentences[number];
  const head = element("th", "", element("bdi", "", ...visible(reading.points.slice(start, end).join(""))));
  head.scope = "row";
  const ofWords = showsWordEffects(reading);
  const top = [...words].sort((one, other) => value(reading, other) - value(reading, one) || other.share - one.share).slice(0, NUM_TOP_WORDS);
  const named = top.flatMap((word, index) => [
    index ? ", " : "",
    element("bdi", "", ...visible(reading.points.slice(word.start, word.end).join(""), ALONE)),
    ` ${ofWords ? signed(word.effect) : percent(word.attention)}`,
  ]);
  const cell = (says) => element("td", "number", reading.muted.has(number) ? "muted" : says);
  const numbers = [...(reading.effects ? [cell(signed(effect))] : []), cell(percent(share))];
  return element("tr", "", head, ...numbers, element("td", "", ...named));
}

/** The size that a word's shade shows. */
const value = (reading, word) => (reading.effects ? Math.abs(word.effect ?? 0) : word.share);
/** Whether effects are drawn and those of words are at hand: not after muting, nor for a very long review. */
const showsWordEffects = ({ effects, now }) => effects && Boolean(now?.effects?.word_method);
const side = (effect) => (effect < 0 ? "opposes" : "supports");
const answer = (selector) => $("answer").querySelector(selector);
const bar = (classes) => element("span", `bar ${classes}`, element("i"));
/** The class of the colour of a label, as in han/explain/pieces.py. */
const kind = (label, labels) => {
  if (label === "negative") return "l0";
  return label === "positive" ? "l1" : `l${2 + (labels.indexOf(label) % 4)}`;
};
