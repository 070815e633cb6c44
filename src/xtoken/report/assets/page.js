"use strict";
(() => {
  // Theme: system, light, dark, in turn.
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  const current = () => root.dataset.theme || "system";
  const label = () => {
    button.textContent = `Theme: ${current()}`;
  };
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(current()) + 1) % themes.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("xtoken-theme", next);
    } catch (error) {
      // Then it holds for this visit.
    }
    label();
  });
  label();
  button.hidden = false;

  // Tables: a heading's button sorts up, then down; what has no value stays last.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const key = cell.dataset.key;
    return key === undefined ? cell.textContent.trim() : key;
  };
  const order = new Intl.Collator("en", { numeric: true });
  const compare = (a, b) => {
    const x = Number(a);
    const y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? order.compare(a, b) : x - y;
  };
  const sortBy = (table, heading) => {
    const column = heading.cellIndex;
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
    const sign = direction === "ascending" ? 1 : -1;
    rows.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  for (const box of document.querySelectorAll("[data-sortable]")) {
    const table = box.querySelector("table");
    for (const sort of box.querySelectorAll("button.sort")) {
      sort.addEventListener("click", () => sortBy(table, sort.closest("th")));
    }
  }

  // Search: a row stays if it holds every word.
  for (const field of document.querySelectorAll("input[data-search]")) {
    const box = field.closest(".table");
    const rows = [...box.querySelectorAll("tbody tr")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const output = box.querySelector("output");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      rows.forEach((row, n) => {
        row.hidden = !words.every((word) => texts[n].includes(word));
        found += !row.hidden;
      });
      output.textContent = words.length ? `${found} of ${rows.length} rows` : `${rows.length} rows`;
    });
  }

  // Tabs, after the pattern of the ARIA Authoring Practices: arrows, Home and End move, Tab leaves.
  let count = 0;
  for (const box of document.querySelectorAll("[data-tabs]")) {
    const list = document.createElement("div");
    list.className = "tab-list";
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", box.dataset.tabs);
    const panels = [...box.querySelectorAll(":scope > .panel")];
    const select = (n, focus) => {
      panels.forEach((panel, k) => {
        panel.hidden = k !== n;
        const tab = list.children[k];
        tab.setAttribute("aria-selected", String(k === n));
        tab.tabIndex = k === n ? 0 : -1;
        if (k === n && focus) tab.focus();
      });
    };
    panels.forEach((panel, n) => {
      const tab = document.createElement("button");
      count += 1;
      tab.type = "button";
      tab.id = `tab-${count}`;
      tab.textContent = panel.dataset.title;
      tab.setAttribute("role", "tab");
      panel.id = `panel-${count}`;
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      tab.setAttribute("aria-controls", panel.id);
      tab.addEventListener("click", () => select(n, false));
      tab.addEventListener("keydown", (event) => {
        const last = panels.length - 1;
        const moves = { ArrowRight: n === last ? 0 : n + 1, ArrowLeft: n === 0 ? last : n - 1, Home: 0, End: last };
        if (event.key in moves) {
          event.preventDefault();
          select(moves[event.key], true);
        }
      });
      list.append(tab);
    });
    if (panels.length) {
      box.prepend(list);
      box.classList.add("live");
      select(0, false);
    }
  }
})();
