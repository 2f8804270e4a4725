// Filters and sorts the rows that the page has. Without it the page shows all of them, the strongest first.
"use strict";

const FIRST = 50; // rows of a label until more are asked for
const form = document.querySelector(".filters");
const shown = document.querySelector("[role=status]");
const sections = [...document.querySelectorAll("section[data-label]")].map(section => ({
  section,
  body: section.querySelector("tbody"),
  more: section.querySelector("button"),
  most: FIRST,
  rows: [...section.querySelectorAll("tbody tr")].map(row => ({
    row,
    phrase: row.querySelector("bdi").textContent,
    isWord: row.dataset.words === "1",
    count: Number(row.dataset.count),
    strength: Number(row.dataset.strength),
    sum: Number(row.dataset.sum),
    mean: Number(row.dataset.mean),
  })),
}));

function draw() {
  const search = form.elements.search.value.trim().toLowerCase();
  const least = Number(form.elements.least.value) || 0;
  const { value: kind } = form.elements.kind, { value: label } = form.elements.label, { value: sort } = form.elements.sort;
  const counts = [];
  for (const each of sections) {
    each.section.hidden = label !== "" && each.section.dataset.label !== label;
    if (each.section.hidden || !each.body) continue;
    const found = each.rows
      .filter(one => one.count >= least && one.phrase.includes(search) && (kind === "" || one.isWord === (kind === "words")))
      .sort((one, other) => other[sort] - one[sort]);
    for (const { row } of each.rows) row.hidden = true;
    for (const { row } of found.slice(0, each.most)) {
      row.hidden = false;
      each.body.append(row);
    }
    each.more.hidden = found.length <= each.most;
    counts.push(`${Math.min(found.length, each.most)} of ${found.length} for ${each.section.querySelector("h2").textContent}`);
  }
  shown.textContent = `Shown: ${counts.join(", ")}`;
}

for (const each of sections) {
  each.more.addEventListener("click", () => {
    each.most += 4 * FIRST;
    draw();
  });
}
form.addEventListener("input", () => {
  for (const each of sections) each.most = FIRST;
  draw();
});
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
draw();
