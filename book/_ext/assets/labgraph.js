// Attribution graphs: a chosen node shows its edges alone, and its card. Everything is in the page.
"use strict";
for (const graph of document.querySelectorAll(".lab-graph")) {
  const svg = graph.querySelector("svg[role='group']");
  if (!svg) continue;
  const nodes = [...svg.querySelectorAll("[data-node]")], edges = [...svg.querySelectorAll("[data-from]")];
  const cards = [...graph.querySelectorAll("[data-card]")], hint = graph.querySelector("[data-hint]");
  let chosen = null;

  const show = (node) => {
    chosen = node;
    const id = node?.dataset.node, near = new Set([id]);
    svg.classList.toggle("chosen", Boolean(node));
    for (const edge of edges) {
      const on = Boolean(node) && (edge.dataset.from === id || edge.dataset.to === id);
      edge.classList.toggle("on", on);
      if (on) near.add(edge.dataset.from).add(edge.dataset.to);
    }
    for (const one of nodes) {
      one.classList.toggle("on", near.has(one.dataset.node));
      one.setAttribute("aria-pressed", String(one === node));
    }
    for (const card of cards) card.hidden = card.dataset.card !== id;
    hint.hidden = Boolean(node);
  };

  for (const node of nodes) {
    node.setAttribute("role", "button"); // without this script there is nothing to press
    node.tabIndex = 0;
    node.addEventListener("click", () => show(chosen === node ? null : node));
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        show(chosen === node ? null : node);
      }
    });
    // Tab walks through the nodes, and each tells its edges on the way; a click does the same, once.
    node.addEventListener("focus", () => { if (node.matches(":focus-visible")) show(node); });
  }
  graph.addEventListener("keydown", (event) => { if (event.key === "Escape") show(null); });
  graph.querySelector("details").open = false;
  show(null);
}
