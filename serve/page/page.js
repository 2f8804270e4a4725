// The page: a text, its answer, and the effect of muting. It sends requests only to the server that it came from.

import { Reading, draw, drawNumbers, drawTable, moved, warnings } from "./draw.js";
import { linkTo, linked } from "./link.js";
import { Trouble, about, sample, score, useKey } from "./server.js";
import { count, element, percent } from "./text.js";
import { hide, watchWords } from "./words.js";

const LONGEST_EXACT = 10_000; // characters of a review whose words the server takes out one by one
const MUTE_PAUSE_MS = 150; // several clicks in a row are one request
const $ = (id) => document.getElementById(id);
const box = $("text");
const sentences = document.querySelector(".sentences");

let reading = null; // what is drawn
let effects = false; // whether effects are shown
let asking = new AbortController(); // of the newest request; an older one is cancelled, and its answer ignored
let pausing = 0;
let again = null; // retries the action that failed; null if none did
let limit = null; // characters the model takes
let sampled = { text: "", caption: "" }; // the last random review
let own = ""; // what the reader wrote before that

/** Run an action that calls the server; cancel the one before it. An error removes the old answer unless `keeps`. */
async function run(action, { keeps = false } = {}) {
  asking.abort();
  clearTimeout(pausing);
  asking = new AbortController();
  const { signal } = asking;
  document.body.classList.add("busy");
  tell(null);
  try {
    await action(signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Trouble)) throw error;
    if (!keeps) clear();
    tell(error, () => run(action, { keeps }));
  } finally {
    if (!signal.aborted) document.body.classList.remove("busy");
  }
}

/** muted: numbers of sentences, from 0, that a link mutes. */
const scoreText = (muted = []) =>
  run(async (signal) => {
    const text = box.value.toWellFormed();
    const caption = box.value === sampled.text ? sampled.caption : "";
    reading = new Reading(text, await score(text, signal, exactly(text)), caption);
    reading.effects = effects;
    draw(reading);
    settle();
    reveal();
    $("said").textContent = [`${reading.whole.label}, ${percent(reading.whole.probability)}`, ...warnings(reading.whole)].join(". ");
    reading.muted = new Set(muted.filter((number) => number < reading.whole.sentences.length));
    if (!reading.muted.size) return;
    reading.now = null;
    drawNumbers(reading);
    settleRest(await score(reading.rest, signal));
  });

/** The effects to ask for: those of words only where they are shown, because they take longer. */
const exactly = (text) => (effects && Array.from(text).length <= LONGEST_EXACT ? "exact_words" : "sentences");

/** Switch between attention and effects. The effects of the sentences are at hand, those of the words are fetched. */
function switchView() {
  effects = !effects;
  $("view").textContent = effects ? "Show attention" : "Show effects";
  reading.effects = effects;
  hide();
  if (reading.now) drawNumbers(reading);
  if (!effects || reading.whole.effects?.word_method || exactly(reading.text) === "sentences") return;
  if (reading.muted.size || !reading.now) return;
  run(
    async (signal) => {
      reading.whole = reading.now = await score(reading.text, signal, "exact_words");
      drawNumbers(reading);
    },
    { keeps: true },
  );
}

/** Scroll until the attention is in view, the verdict above it. */
function reveal() {
  const { top } = $("answer").querySelector(".verdict").getBoundingClientRect();
  const { bottom } = sentences.firstElementChild.getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) $("answer").querySelector(".verdict").scrollIntoView({ block: "start" });
}

function clear() {
  reading = null;
  $("answer").hidden = true;
  $("said").textContent = "";
  settle();
}

const drawRandom = () =>
  run(async (signal) => {
    const { review_id, text, label } = await sample(signal);
    if (box.value !== sampled.text) own = box.value;
    fill(text);
    sampled = { text: box.value, caption: `${review_id}, written as ${label}` };
    $("back").hidden = !own.trim();
    await scoreText();
  });

/** Score the sentences that are not muted; the answer to the whole text is known. */
async function scoreRest() {
  if (reading.muted.size) return run(async (signal) => settleRest(await score(reading.rest, signal)), { keeps: true });
  asking.abort();
  document.body.classList.remove("busy");
  tell(null);
  settleRest(reading.whole);
}

function settleRest(answer) {
  reading.now = answer;
  hide();
  drawNumbers(reading);
  $("said").textContent = moved(reading) || `Nothing muted: ${reading.whole.label}, ${percent(reading.whole.probability)}`;
}

function mute(number) {
  if (!reading.muted.delete(number)) reading.muted.add(number);
  wait();
  pausing = setTimeout(scoreRest, MUTE_PAUSE_MS);
}

function wait() {
  clearTimeout(pausing);
  asking.abort();
  reading.now = null;
  drawNumbers(reading);
}

async function openLink() {
  let link;
  try {
    link = await linked();
  } catch {
    clear();
    return tell(new Trouble("This link is damaged: its text cannot be read."));
  }
  if (link === null) return;
  fill(link.text);
  await scoreText(link.muted);
}

async function share() {
  const link = await linkTo(reading.text, reading.muted);
  if (link === null) return ($("shared").textContent = "This review is too long for a link.");
  history.replaceState(null, "", link);
  const copied = await navigator.clipboard?.writeText(link).then(
    () => true,
    () => false,
  );
  $("shared").textContent = copied ? "Copied. The review is in the link itself." : "The link is in the address bar.";
}

function fill(text) {
  box.value = text;
  settle();
}

/** Update the parts that depend on the text in the box. */
function settle() {
  const length = Array.from(box.value).length;
  const most = limit === null ? "" : ` of ${limit.toLocaleString("en")}`;
  const changed = reading && reading.text !== box.value.toWellFormed() ? ", changed since it was scored" : "";
  $("counter").textContent = `${length.toLocaleString("en")}${most} characters${changed}`;
  $("counter").classList.toggle("over", limit !== null && length > limit);
  $("shared").textContent = "";
}

function tell(trouble, retry = null) {
  again = retry;
  $("ask-key").hidden = !trouble?.asksKey;
  $("trouble").hidden = !trouble?.message;
  $("trouble").querySelector("p").textContent = trouble?.message ?? "";
  $("trouble").querySelector("button").hidden = !trouble?.again;
  if (trouble?.asksKey) $("key").focus();
}

async function introduce() {
  try {
    const { model, limits, metrics } = await about();
    limit = limits.max_characters;
    const [split, measured] = metrics.test ? ["test", metrics.test] : ["development", metrics.development];
    const right = measured && `right in ${percent(measured.accuracy)} of ${count(measured.num_reviews, `${split} review`)} · `;
    $("model").replaceChildren("Model ", element("code", "", model), " · ", right ?? "");
    settle();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (!again) tell(error, introduce);
  }
}

$("write").addEventListener("submit", (event) => {
  event.preventDefault();
  scoreText();
});
box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  scoreText();
});
box.addEventListener("input", () => {
  $("back").hidden = true;
  settle();
});
$("random").addEventListener("click", drawRandom);
$("back").addEventListener("click", () => {
  fill(own);
  $("back").hidden = true;
  box.focus();
});
$("view").addEventListener("click", switchView);
$("copy").addEventListener("click", share);
$("unmute").addEventListener("click", () => {
  reading.muted.clear();
  wait();
  scoreRest();
  sentences.querySelector(".share").focus(); // the button that had the focus is gone
});
$("trouble").querySelector("button").addEventListener("click", () => again());
$("ask-key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  const failed = again;
  tell(null);
  introduce();
  if (failed !== introduce) failed();
});
$("as-table").addEventListener("toggle", () => drawTable(reading));
addEventListener("hashchange", openLink);

let finger = false;
sentences.addEventListener("pointerdown", (event) => (finger = event.pointerType === "touch"));
sentences.addEventListener("click", ({ target }) => {
  const row = target.closest(".row");
  const isNumber = target.closest(".share");
  if (!row || (finger && !isNumber) || (!isNumber && !getSelection().isCollapsed)) return; // a finger reads, a drag selects
  mute(Number(row.dataset.number));
});
sentences.addEventListener("keydown", (event) => {
  if (!event.target.matches(".w") || (event.key !== "Enter" && event.key !== " ")) return;
  event.preventDefault();
  const row = event.target.closest(".row");
  row.querySelector(".share").focus();
  mute(Number(row.dataset.number));
});
watchWords(sentences);

document.querySelector(".ramp").append(
  ...Array.from({ length: 21 }, (_, shade) => {
    const step = element("i");
    step.style.setProperty("--a", shade / 20);
    return step;
  }),
);
settle();
introduce();
openLink();
