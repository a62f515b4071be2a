// The search page: a hit in the glossary shows its definition, and no hit at all gets advice.
"use strict";
(() => {
  if (typeof Search === "undefined") return;
  // A page opened without a server may fetch no other one: its hits are titles and places, without a summary.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  const plain = Search.htmlToText;
  Search.htmlToText = (text, anchor) => {
    if (anchor?.startsWith("#term-")) {
      const term = new DOMParser().parseFromString(text, "text/html").getElementById(anchor.slice(1));
      let said = term?.nextElementSibling;
      while (said?.tagName === "DT") said = said.nextElementSibling;
      if (said) return `${term.firstChild.textContent.trim()}: ${said.textContent.trim()}`;
    }
    return plain(text, anchor);
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
