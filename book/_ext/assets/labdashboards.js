// Sorting and filtering for the dashboards of latents. Without this script the index is a plain table.
"use strict";
(() => {
  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim().toLowerCase();

  function sortBy(head, rows, body) {
    const column = head.cellIndex;
    const numbers = rows.every((row) => "v" in row.cells[column].dataset);
    const first = numbers && column ? "descending" : "ascending"; // of a measure the large values are of interest
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const cell of head.parentElement.cells) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      return sign * (numbers ? x - y : x.localeCompare(y));
    });
    body.append(...rows);
  }

  function setUp(box) {
    const table = box.querySelector(".lab-index table");
    const body = table.tBodies[0];
    const rows = [...body.rows];
    for (const head of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sortBy(head, rows, body));
      head.replaceChildren(button);
    }
    const line = box.querySelector(".lab-filter");
    const [input, status] = [line.querySelector("input"), line.querySelector("[role=status]")];
    line.hidden = false;
    const filter = () => {
      const wanted = input.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        shown += !row.hidden;
        const card = document.getElementById(`latent-${row.dataset.latent}`);
        if (card) card.hidden = row.hidden;
      }
      status.textContent = `${shown} of ${rows.length} latents`;
    };
    input.addEventListener("input", filter);
    filter();
  }

  // A link to a card opens it, also when the filter has hidden it.
  function open() {
    const card = document.getElementById(location.hash.slice(1));
    if (!card || !card.matches("details.lab-latent")) return;
    card.hidden = false;
    card.open = true;
    card.scrollIntoView();
    card.querySelector("summary").focus({ preventScroll: true });
  }

  document.querySelectorAll(".lab-latents").forEach(setUp);
  addEventListener("hashchange", open);
  // The same link twice changes no hash.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#latent-']");
    if (link && link.hash === location.hash) open();
  });
  open();
})();
