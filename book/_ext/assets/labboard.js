// The circuit board: the drawing's families become switches, and the numbers of the state that they make are shown.
// All numbers are in the page; nothing is computed here.
"use strict";
for (const board of document.querySelectorAll(".lab-board")) {
  const data = JSON.parse(board.querySelector("script[type='application/json']").textContent);
  const says = board.querySelector(".lab-board-says");
  const every = [...data.circuit, ...data.model].flat();
  const low = Math.min(0, ...every), high = Math.max(0, ...every), span = high - low || 1;
  const full = data.model.length - 1;
  const usable = [...new Set(Object.values(data.boxes))].reduce((sum, bit) => sum + 2 ** bit, 0);
  let state = full;

  const plain = (value) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(2);
  const signed = (value) => (value < 0 ? "" : "+") + plain(value);
  const told = ([mean, from, to]) => `${signed(mean)} (95 % interval ${signed(from)} to ${signed(to)})`;
  const listed = (names) => names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
  const at = (value) => `${(100 * (value - low)) / span}%`;
  const wide = (from, to) => `${(100 * (to - from)) / span}%`;
  const kept = (bit) => bit === undefined || Boolean((state >> bit) & 1);

  const show = () => {
    const off = data.families.filter((_, bit) => !kept(bit));
    const which = off.length === 0 ? "with all families" : off.length === data.families.length ? "with no family"
      : `without ${listed(off)}`;
    const model = off.length ? "The model without their heads" : "The whole model";
    const whole = data.model[full][0];
    const share = whole ? `, ${Math.round((100 * data.circuit[state][0]) / whole)} % of the whole model's` : "";
    says.textContent = `The circuit ${which}: logit difference ${told(data.circuit[state])}${share}. `
      + `${model}: ${told(data.model[state])}. Completeness gap, model minus circuit: ${told(data.gap[state])}. `
      + `Means over ${data.n} prompts.`;
    for (const key of ["circuit", "model"]) {
      const [mean, from, to] = data[key][state];
      const bar = board.querySelector(`[data-bar=${key}]`), whisker = board.querySelector(`[data-whisker=${key}]`);
      bar.style.left = at(Math.min(0, mean));
      bar.style.width = wide(0, Math.abs(mean));
      bar.classList.toggle("against", mean < 0);
      whisker.style.left = at(from);
      whisker.style.width = wide(from, to);
      board.querySelector(`[data-number=${key}]`).textContent = `${plain(mean)} [${plain(from)}, ${plain(to)}]`;
    }
    for (const one of board.querySelectorAll("[role=switch]"))
      one.setAttribute("aria-checked", String(kept(Number(one.dataset.bit))));
    for (const arrow of board.querySelectorAll("[data-arrow]"))
      arrow.classList.toggle("lab-out", !arrow.dataset.arrow.split(" > ").every((key) => kept(data.boxes[key])));
  };

  const turn = (one) => {
    state ^= 2 ** Number(one.dataset.bit);
    show();
  };

  for (const box of board.querySelectorAll("[data-box]")) {
    const bit = data.boxes[box.dataset.box];
    if (bit === undefined) continue;
    const one = box.parentNode;
    const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => Number(box.getAttribute(name)));
    const cross = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cross.setAttribute("d", `M${x + 5} ${y + 5}L${x + w - 5} ${y + h - 5}M${x + w - 5} ${y + 5}L${x + 5} ${y + h - 5}`);
    cross.setAttribute("class", "lab-cross");
    one.append(cross);
    one.dataset.bit = bit;
    one.setAttribute("role", "switch");
    one.setAttribute("tabindex", "0");
    one.setAttribute("aria-label", `Keep ${data.families[bit]}, ${data.heads[bit]}`);
    one.addEventListener("click", () => turn(one));
    one.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (!event.repeat) turn(one);
    });
  }
  // As a picture, the drawing would hide its switches: what it tells moves into a text beside it.
  const drawing = board.querySelector("[role=img]");
  const text = document.createElement("p");
  text.className = "visually-hidden";
  text.textContent = drawing.getAttribute("aria-label");
  drawing.before(text);
  drawing.setAttribute("role", "group");
  drawing.setAttribute("aria-label", "Families that keep their output");
  for (const svg of drawing.querySelectorAll("svg")) svg.removeAttribute("aria-hidden");

  for (const button of board.querySelectorAll("button[data-all]"))
    button.addEventListener("click", () => {
      state = button.dataset.all === "1" ? full : full - usable;
      show();
    });
  for (const [name, value] of [["zero", 0], ["whole", data.model[full][0]]]) {
    board.style.setProperty(`--lab-${name}`, at(value));
    board.querySelector(`[data-at=${name}]`).style.left = at(value);
  }
  for (const part of board.querySelectorAll("[hidden]")) part.hidden = !usable;
  board.querySelector("details").open = !usable;
  show();
}
