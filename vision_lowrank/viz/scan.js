// Sorting, filtering and unfolding of the page that viz/scan_report.py writes. Every picture is a <tbody> of two rows.
"use strict";
const table = document.getElementById("scan");
const items = [...table.tBodies];
const boxes = [...document.querySelectorAll("[data-kind]")];
const search = document.getElementById("search");
const shown = document.getElementById("shown");
const texts = item => [...item.querySelectorAll("bdi, dd")].map(part => part.textContent.toLowerCase()).join("\n");
const words = new Map(items.map(item => [item, texts(item)]));

function filter() {
  const kinds = new Set(boxes.filter(box => box.checked).map(box => box.dataset.kind));
  const text = search.value.trim().toLowerCase();
  for (const item of items) item.hidden = !kinds.has(item.dataset.verdict) || !words.get(item).includes(text);
  const visible = items.filter(item => !item.hidden).length;
  shown.textContent = `${visible} of ${items.length} shown`;
}

function sort(button) {
  const { key, first } = button.dataset;
  const heading = button.closest("th");
  const flip = { ascending: "descending", descending: "ascending" };
  const order = flip[heading.getAttribute("aria-sort")] ?? first;
  for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const compare = key === "path"
    ? (a, b) => a.localeCompare(b, undefined, { numeric: true })
    : (a, b) => Number(a) - Number(b);
  items.sort((a, b) => sign * compare(a.dataset[key], b.dataset[key]));
  table.append(...items);
}

function unfold(button, open) {
  button.setAttribute("aria-expanded", open);
  button.closest("tbody").querySelector(".detail").hidden = !open;
}

for (const button of table.querySelectorAll("thead button")) button.addEventListener("click", () => sort(button));
for (const button of table.querySelectorAll(".name button")) {
  unfold(button, false);
  button.addEventListener("click", () => unfold(button, button.getAttribute("aria-expanded") !== "true"));
}
for (const box of boxes) box.addEventListener("change", filter);
search.addEventListener("input", filter);
document.getElementById("controls").hidden = false;
filter();
