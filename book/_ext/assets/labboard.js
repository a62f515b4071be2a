// The circuit board: shows the numbers of the families that are ticked. They are in the page; nothing is computed here.
"use strict";
for (const board of document.querySelectorAll(".lab-board")) {
  const data = JSON.parse(board.querySelector("script[type='application/json']").textContent);
  const boxes = [...board.querySelectorAll("input[data-bit]")];
  const says = board.querySelector(".lab-board-says");
  const every = [...data.circuit, ...data.model].map(([mean]) => mean);
  const low = Math.min(0, ...every), high = Math.max(0, ...every), span = high - low || 1;
  const full = data.model.length - 1;

  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  const told = ([mean, from, to]) => `${signed(mean)} (95 % interval ${signed(from)} to ${signed(to)})`;
  const listed = (names) => names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;

  const show = () => {
    const state = boxes.reduce((sum, box) => sum + (box.checked ? 2 ** Number(box.dataset.bit) : 0), 0);
    const off = boxes.filter((box) => !box.checked).map((box) => data.families[Number(box.dataset.bit)]);
    const which = off.length === 0 ? "with all families" : off.length === boxes.length ? "with no family"
      : `without ${listed(off)}`;
    const model = off.length ? "The model without their heads" : "The whole model";
    const whole = data.model[full][0];
    const share = whole ? `, ${Math.round((100 * data.circuit[state][0]) / whole)} % of the whole model's` : "";
    says.textContent = `The circuit ${which}: logit difference ${told(data.circuit[state])}${share}. `
      + `${model}: ${told(data.model[state])}. Completeness gap, model minus circuit: ${told(data.gap[state])}. `
      + `Means over ${data.n} prompts.`;
    for (const bar of board.querySelectorAll("[data-bar]")) {
      const value = data[bar.dataset.bar][state][0];
      bar.style.left = `${(100 * (Math.min(0, value) - low)) / span}%`;
      bar.style.width = `${(100 * Math.abs(value)) / span}%`;
      bar.classList.toggle("against", value < 0);
    }
    for (const zero of board.querySelectorAll(".lab-board-zero")) zero.style.left = `${(-100 * low) / span}%`;
  };

  board.addEventListener("change", show);
  for (const button of board.querySelectorAll("button[data-all]"))
    button.addEventListener("click", () => {
      // A family without heads changes nothing, so its box stays as it is.
      for (const box of boxes) if (!box.disabled) box.checked = button.dataset.all === "1";
      show();
    });
  for (const part of board.querySelectorAll("[hidden]")) part.hidden = false;
  board.querySelector("details").open = false;
  show();
}
