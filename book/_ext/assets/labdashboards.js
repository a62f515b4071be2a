// The dashboards of latents: one at a time, each under an address of its own (#latent-7), in the order of an index that
// can be sorted and filtered. Without this script the index is a plain table, and the dashboards are a list.
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
    const cards = [...box.querySelectorAll("details.lab-latent")];
    const missing = box.querySelector(".lab-missing"), steps = box.querySelector(".lab-steps");
    const [before, place, after] = ["a", "span", "a"].map((name) => steps.appendChild(document.createElement(name)));
    let current, stepped;

    // The steps go along the index as it is sorted and filtered now.
    function along() {
      const shown = rows.filter((row) => !row.hidden).map((row) => row.dataset.latent);
      const at = shown.indexOf(current.id.slice("latent-".length));
      place.textContent = at < 0 ? `not among these ${shown.length}` : `${at + 1} of ${shown.length}`;
      for (const [link, name, to] of [[before, "previous", shown[at - 1]], [after, "next", shown[at + 1]]]) {
        link.hidden = to === undefined;
        link.href = `#latent-${to}`;
        link.textContent = `${name}: ${to}`;
      }
    }

    function show(card) {
      current = card;
      for (const one of cards) one.hidden = one !== card;
      card.open = true;
      for (const row of rows)
        row.toggleAttribute("data-current", `latent-${row.dataset.latent}` === card.id);
      along();
    }

    // What the address asks for; an address of something else on the page changes nothing.
    function open() {
      const wanted = location.hash.slice(1);
      const card = cards.find((one) => one.id === wanted);
      const number = /^latent-(\d+)$/.exec(wanted);
      const lost = !card && wanted.startsWith("latent-");
      if (wanted && !card && !lost && current) return;
      show(card ?? cards[0]);
      missing.hidden = !lost;
      missing.textContent = !lost ? "" : `${number ? `Latent ${number[1]} has no dashboard on this page` : "This address names no latent"}. `
        + `Here is the first: latent ${current.id.slice("latent-".length)}.`;
      if (stepped) stepped.hidden ? current.querySelector("summary").focus({ preventScroll: true }) : stepped.focus();
      else if (card || lost) {
        (lost ? missing : steps).scrollIntoView();
        current.querySelector("summary").focus({ preventScroll: true });
      }
      stepped = undefined;
    }

    for (const head of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => {
        sortBy(head, rows, body);
        along();
      });
      head.replaceChildren(button);
    }
    const line = box.querySelector(".lab-filter");
    const [input, status] = [line.querySelector("input"), line.querySelector("[role=status]")];
    const filter = () => {
      const wanted = input.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} latents`;
      if (current) along();
    };
    input.addEventListener("input", filter);
    filter();
    box.classList.add("lab-one");
    line.hidden = steps.hidden = false;
    for (const link of [before, after]) link.addEventListener("click", () => { stepped = link; });
    addEventListener("hashchange", open);
    // The same link twice changes no hash.
    document.addEventListener("click", (event) => {
      const link = event.target.closest?.("a[href^='#latent-']");
      if (link && link.hash === location.hash) open();
    });
    open();
  }

  document.querySelectorAll(".lab-latents").forEach(setUp);
})();
