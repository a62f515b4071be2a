// The ledger's filter: by words, by chapter, by verdict. Without scripts all rows are there.
"use strict";
(() => {
  const tables = [...document.querySelectorAll("table.lab-ledger:not(.lab-ledger-totals):not(.lab-ledger-numbers)")];
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
  if (!rows.length) return;
  const chapter = (row) => row.cells[row.cells.length - 1].textContent.trim();
  const wrong = (row) => Boolean(row.querySelector(".lab-no")) || Boolean(row.closest(".lab-ledger-surprises"));

  const form = document.createElement("form");
  form.className = "lab-ledger-filter";
  form.innerHTML = `<label>Words <input type="search" name="words" autocomplete="off" spellcheck="false"></label>
    <label>Chapter <select name="chapter"><option value="">all</option></select></label>
    <label>Verdict <select name="verdict"><option value="">any</option><option value="yes">as said</option><option value="no">otherwise</option></select></label>
    <span role="status" aria-live="polite"></span>`;
  const number = (name) => Number.parseInt(name, 10) || 99;
  const names = [...new Set(rows.map(chapter))].sort((a, b) => number(a) - number(b));
  form.elements.chapter.append(...names.map((name) => new Option(name)));
  const said = form.querySelector("span");

  const apply = () => {
    const words = form.elements.words.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const { chapter: { value: where }, verdict: { value: verdict } } = form.elements;
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!where || chapter(row) === where)
        && (!verdict || wrong(row) === (verdict === "no"));
      row.hidden = !fits;
      shown += fits;
    }
    for (const table of tables) table.classList.toggle("lab-empty", rowsOf(table).every((row) => row.hidden));
    said.textContent = words.length || where || verdict
      ? (shown ? `${shown} of ${rows.length} rows` : "No row fits: take away a word, or choose all chapters.") : "";
  };
  const rowsOf = (table) => [...table.tBodies[0].rows];
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  const totals = document.querySelector("table.lab-ledger-totals");
  (totals.closest(".pst-scrollable-table-container") ?? totals).after(form);
})();
