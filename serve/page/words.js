// Shows a word's numbers: for the pointer, a finger and the arrow keys. One tip serves all words and is announced.

const tip = document.getElementById("tip");
let shown = null;

export function watchWords(sentences) {
  sentences.addEventListener("pointerover", ({ target }) => target.closest(".w") && show(target.closest(".w")));
  sentences.addEventListener("pointerout", ({ pointerType, relatedTarget }) => pointerType === "touch" || tip.contains(relatedTarget) || hide());
  tip.addEventListener("pointerleave", hide);
  document.addEventListener("pointerdown", ({ target }) => target.closest(".w, #tip") || hide()); // the finger is elsewhere
  sentences.addEventListener("focusin", ({ target }) => (target.matches(".w") ? show(target) : hide()));
  sentences.addEventListener("focusout", hide);
  document.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
  sentences.addEventListener("keydown", walk);
}

export function hide() {
  shown?.removeAttribute("aria-describedby");
  shown = null;
  tip.classList.remove("shown");
  tip.removeAttribute("role"); // an empty tooltip is no tooltip
  tip.firstChild.textContent = "";
}

function show(word) {
  if (word === shown) return;
  hide();
  shown = word;
  word.setAttribute("aria-describedby", "tip");
  tip.setAttribute("role", "tooltip");
  tip.firstChild.textContent = word.effect ?? `${word.dataset.sentence} of its sentence · ${word.dataset.review} of the review`;
  const [first] = word.getClientRects(); // a word may span lines
  const left = first.left + first.width / 2 - tip.offsetWidth / 2;
  const above = first.top - tip.offsetHeight;
  tip.classList.toggle("below", above < 0);
  tip.style.left = `${scrollX + Math.max(4, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${scrollY + (above < 0 ? first.bottom : above)}px`;
  tip.classList.add("shown");
}

/** Left and right move through the number and the words of a sentence, up and down through the sentences. */
function walk(event) {
  const row = event.target.closest(".row");
  const stops = [...row.querySelectorAll(".share, .w")];
  const place = stops.indexOf(event.target);
  const next = {
    ArrowRight: () => stops[place + 1],
    ArrowLeft: () => stops[place - 1],
    Home: () => stops[0],
    End: () => stops.at(-1),
    ArrowDown: () => row.nextElementSibling?.querySelector(".share"),
    ArrowUp: () => row.previousElementSibling?.querySelector(".share"),
  }[event.key]?.();
  if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  next.focus();
}
