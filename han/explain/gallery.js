// Search and order of the reviews on a page. Without this script all reviews are shown, in the order of the page.
const find = document.querySelector(".find"), [box, order, shown] = ["input", "select", "output"].map((name) => find.querySelector(name));
const reviews = [...document.querySelectorAll("main > article")];
const rows = [...document.querySelectorAll(".index tbody tr")];
const texts = [];
let latest = 0; // number of the newest search: an older one stops

const plain = (text) => text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ").trim();
const textOf = (n) => (texts[n] ??= plain([...reviews[n].querySelectorAll(".id, .verdict, .raw")].map((part) => part.textContent).join(" ")));

async function search() {
  const own = ++latest, wanted = plain(box.value), hits = [];
  for (let n = 0, start = performance.now(); n < reviews.length; n++) {
    hits.push(textOf(n).includes(wanted));
    if (performance.now() - start < 30) continue;
    await new Promise((resume) => setTimeout(resume)); // the page stays responsive
    if (own !== latest) return;
    start = performance.now();
  }
  hits.forEach((hit, n) => { reviews[n].hidden = rows[n].hidden = !hit; });
  shown.textContent = wanted ? `${hits.filter(Boolean).length.toLocaleString("en")} of ${hits.length.toLocaleString("en")} match` : "";
}

function arrange() {
  const key = order.value.replace("-", ""), sign = order.value.startsWith("-") ? -1 : 1;
  const value = (n) => (key ? sign * Number(reviews[n].dataset[key]) : n);
  const places = reviews.map((_, n) => n).sort((one, other) => value(one) - value(other) || one - other);
  places.forEach((n, place) => { reviews[n].style.order = place + 1; }); // to move a million nodes would block the page for seconds
  const moved = document.createDocumentFragment(), table = rows[0].parentNode;
  places.forEach((n) => moved.append(rows[n]));
  table.append(moved);
}

box.addEventListener("input", search);
order.addEventListener("change", arrange);
find.hidden = false;
if (box.value) search(); // a browser keeps what was typed over a reload
if (order.selectedIndex) arrange();
