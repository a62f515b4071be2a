// What several scripts of the book need, and what every page needs.
"use strict";

// One JSON object that this browser keeps for a purpose and this model. Whatever lies there may have any shape: who reads
// it checks it. Where the browser keeps nothing, the object lives as long as the page, and `kept` is false.
globalThis.labStore = (purpose) => {
  const model = document.querySelector('meta[name="lab-model"]')?.content;
  // Another model, other answers; and two books on one host, such as two editions side by side, keep theirs apart.
  const site = new URL(document.documentElement.dataset.content_root || "./", document.baseURI).pathname;
  const key = `interp-lab:${site}:${purpose}:${model || "any model"}`;
  let unkept = null;
  return {
    get kept() { return !unkept; },
    read() {
      if (unkept) return unkept;
      let stored;
      try {
        stored = localStorage.getItem(key);
      } catch {
        return (unkept = {});
      }
      try {
        const all = JSON.parse(stored ?? "{}");
        return all && typeof all === "object" ? all : {};
      } catch {
        try {
          localStorage.setItem(`${key}:unreadable`, stored);
        } catch { /* full: what could not be read stays where it is until something is written */ }
        return {};
      }
    },
    write(all) {
      if (!unkept) {
        try {
          localStorage.setItem(key, JSON.stringify(all));
          return;
        } catch { /* full or forbidden */ }
      }
      unkept = all;
    },
    forget() {
      if (unkept) unkept = {};
      else [key, `${key}:unreadable`].forEach((one) => localStorage.removeItem(one));
    },
  };
};

// The buttons that fold a box say what they open: "Show hint", not "Toggle hidden content" for each.
(() => {
  const name = () => document.querySelectorAll("button.toggle-button").forEach((button) => {
    const title = button.closest(".admonition, .solution, .exercise")?.querySelector(".admonition-title")?.textContent.trim();
    if (title) button.setAttribute("aria-label", `Show or hide: ${title.replace(/\s+/g, " ")}`);
  });
  if (document.readyState === "complete") name();
  else addEventListener("load", name);
})();

// Boxes that scroll are reached by keyboard, and one that goes on to the right says so by a class: all are asked before any is changed, which takes one layout of the page.
// What is folded or not yet drawn is asked when it comes to be seen: each such box would take a layout of its own.
(() => {
  const BOXES = "pre, .cell_output > .output, .pst-scrollable-table-container, .lab-diagram, .lab-formula";
  const more = (box) => box.scrollWidth - box.clientWidth - box.scrollLeft > 2;
  const tell = () => {
    const boxes = [...document.querySelectorAll(BOXES)].filter((box) => !box.closest("details:not([open])"));
    const scroll = boxes.map((box) => box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight);
    const goesOn = boxes.map(more);
    boxes.forEach((box, i) => {
      if (scroll[i] !== (box.tabIndex === 0)) box.tabIndex = scroll[i] ? 0 : -1;
      if (goesOn[i] !== box.classList.contains("lab-more")) box.classList.toggle("lab-more");
    });
  };
  let waiting = null;
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(tell, 300);
  };
  const begin = () => {
    tell();
    addEventListener("resize", soon);
    document.addEventListener("scroll", ({ target }) => {
      if (target.classList && target.matches(BOXES)) target.classList.toggle("lab-more", more(target));
    }, { capture: true, passive: true });
    document.addEventListener("toggle", soon, { capture: true });
    document.addEventListener("contentvisibilityautostatechange", soon);
    new MutationObserver(soon).observe(document.getElementById("main-content") ?? document.body, { subtree: true, childList: true });
  };
  if (document.readyState === "complete") begin();
  else addEventListener("load", () => (globalThis.requestIdleCallback ?? setTimeout)(begin));
})();

// Paper is white: a page that is read in the dark scheme is printed in the light one.
(() => {
  const root = document.documentElement;
  let screen = null;
  // In the capture phase, so that the figures' own handler already meets the light scheme.
  addEventListener("beforeprint", () => {
    screen = root.dataset.theme;
    root.dataset.theme = "light";
  }, { capture: true });
  addEventListener("afterprint", () => {
    if (screen) root.dataset.theme = screen;
  }, { capture: true });
})();
