// Paper is white: a page that is read in the dark scheme is printed in the light one.
"use strict";
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
