// The search page: a page is listed once, a hit in the glossary shows its definition, and no hit at all gets advice.
"use strict";
(() => {
  if (typeof Search === "undefined") return;
  // A page opened without a server may fetch no other one: its hits are titles and places, without a summary.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  // A page that is listed with the place that fits is not listed once more as a whole. The best result comes last.
  const perform = Search._performSearch;
  Search._performSearch = (...asked) => {
    const found = perform(...asked);
    const best = new Map(found.map((one) => [one[0], one]));
    return found.filter((one) => one[2] || best.get(one[0]) === one);
  };
  Search.htmlToText = (text, anchor) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    page.querySelectorAll(".headerlink, script, style").forEach((part) => part.remove());
    page.querySelectorAll("h1, h2, h3, p, li, td, th, dt, dd, pre, figcaption").forEach((block) => block.append(" "));
    const place = (anchor && page.getElementById(anchor.slice(1))) || page.querySelector("article");
    if (!anchor?.startsWith("#term-")) return place?.textContent ?? "";
    let said = place.nextElementSibling;
    while (said?.tagName === "DT") said = said.nextElementSibling;
    return `${place.firstChild.textContent.trim()}: ${said?.textContent.trim() ?? ""}`;
  };
  const results = document.getElementById("search-results");
  new MutationObserver(() => {
    const query = new URLSearchParams(location.search).get("q");
    const summary = results.querySelector(".search-summary");
    if (!query || !summary || results.querySelector(".lab-advice") || results.querySelector("ul.search li")) return;
    if (!/did not match|no.*found/i.test(summary.textContent)) return;
    const advice = document.createElement("p");
    advice.className = "lab-advice";
    advice.textContent = "Try fewer letters or another word for it. The glossary lists the words of the book, the ledger what it found.";
    summary.after(advice);
  }).observe(results, { childList: true, subtree: true });
})();
