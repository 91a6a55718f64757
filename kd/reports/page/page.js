"use strict";

// Sort a table by a column: numbers by value, those that are missing last, else by text.
function orderOf(row, column) {
  const cell = row.cells[column];
  const order = cell.dataset.order ?? cell.textContent.trim();
  const number = order === "" || order === "nan" ? NaN : Number(order);
  return { text: order === "nan" ? "" : order, number };
}

function compare(one, other) {
  if (one.text === "" || other.text === "") return Infinity * ((one.text === "") - (other.text === "")) || 0;
  if (!isNaN(one.number) && !isNaN(other.number)) return one.number - other.number;
  return one.text.localeCompare(other.text, "en", { numeric: true });
}

function sortBy(head) {
  const heads = [...head.parentElement.children];
  const body = head.closest("table").tBodies[0];
  const column = heads.indexOf(head);
  const down = head.getAttribute("aria-sort") === "ascending";
  heads.forEach((each) => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map((row) => [row, orderOf(row, column)]);
  rows.sort(([, one], [, other]) => {
    const found = compare(one, other);
    return down && Math.abs(found) !== Infinity ? -found : found;
  });
  rows.forEach(([row]) => body.append(row));
}

// Show the rows, and the columns by pairs, whose method, ablation, scale and pair are ticked.
function choose(form) {
  const chosen = {};
  form.querySelectorAll("input").forEach((box) => {
    chosen[box.name] ??= new Set();
    if (box.checked) chosen[box.name].add(box.value);
  });
  form.parentElement.querySelectorAll("tr[data-method]").forEach((row) => {
    row.hidden = Object.entries(chosen).some(([axis, values]) => axis in row.dataset && !values.has(row.dataset[axis]));
  });
  form.parentElement.querySelectorAll("th[data-pair]").forEach((head) => {
    const hidden = "pair" in chosen && !chosen.pair.has(head.dataset.pair);
    [...head.closest("table").rows].forEach((row) => (row.cells[head.cellIndex].hidden = hidden));
  });
}

// Say what an element means, next to it, when it is pointed at or has the focus.
const tip = document.createElement("div");
tip.id = "_tip";
tip.role = "tooltip";
tip.hidden = true;
document.body.append(tip);

let said = null;

function say(event) {
  said = event.target.closest?.("[data-tip]") ?? null;
  tip.hidden = !said;
  if (said) tip.textContent = said.dataset.tip;
  place();
}

function place() {
  if (!said) return;
  const at = said.getBoundingClientRect();
  const above = at.top - tip.offsetHeight - 6;
  const middle = at.left + (at.width - tip.offsetWidth) / 2;
  tip.style.top = `${above > 0 ? above : at.bottom + 6}px`;
  tip.style.left = `${Math.max(4, Math.min(middle, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
}

document.addEventListener("mouseover", say);
document.addEventListener("focusin", say);
document.addEventListener("focusout", () => (tip.hidden = true));
document.addEventListener("scroll", place, true);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden = true;
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.closest("th")) sortBy(button.closest("th"));
  if (button.dataset.all) {
    button.closest("fieldset").querySelectorAll("input").forEach((box) => (box.checked = button.dataset.all === "all"));
    choose(button.form);
  }
});
document.addEventListener("change", (event) => {
  if (event.target.closest(".filters")) choose(event.target.form);
});
document.querySelectorAll(".filters").forEach(choose);

// On paper nothing can be opened.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((each) => (each.open = true));
});
window.addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
