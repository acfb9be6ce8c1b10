"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const said = () => theme.setAttribute("aria-pressed", String(dark()));
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; said(); });
  system.addEventListener("change", said);
  said();

  const filters = document.getElementById("filters");
  if (!filters) return;
  filters.hidden = false;
  const text = document.getElementById("filter-text");
  const verdict = document.getElementById("filter-verdict");
  const shown = document.getElementById("shown");
  const rows = [...document.querySelectorAll("table.verdicts tr.row")];
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const group = row.parentElement;
      const content = (group.dataset.title + " " + row.textContent).toLowerCase();
      row.hidden = !(words.every((word) => content.includes(word)) && (!verdict.value || row.dataset.verdict === verdict.value));
      count += row.hidden ? 0 : 1;
    }
    for (const group of new Set(rows.map((row) => row.parentElement))) {
      group.hidden = ![...group.querySelectorAll("tr.row")].some((row) => !row.hidden);
    }
    shown.textContent = `${count} of ${rows.length} gates`;
  };
  text.addEventListener("input", filter);
  verdict.addEventListener("change", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());

  for (const table of document.querySelectorAll("table.verdicts")) {
    const heads = [...table.querySelectorAll("thead th[data-key]")];
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const order = { ascending: "descending", descending: "none", none: "ascending" }[head.getAttribute("aria-sort") || "none"];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (order !== "none") head.setAttribute("aria-sort", order);
        sort(table, order === "none" ? "place" : head.dataset.key, order === "none" || "number" in head.dataset, order === "descending");
      });
    }
  }
  function sort(table, key, numeric, falling) {
    const worth = (row) => (numeric ? Number(row.dataset[key]) : row.dataset[key]);
    const unknown = (row) => Number(row.dataset[key] === "");
    const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    for (const group of table.tBodies) {
      const sorted = [...group.querySelectorAll("tr.row")].sort((a, b) => unknown(a) - unknown(b) || compare(worth(a), worth(b)) * (falling ? -1 : 1) || Number(a.dataset.place) - Number(b.dataset.place));
      group.append(...sorted);
    }
  }
})();
