// The reader's predictions: typed in the boxes, kept in this browser alone, listed and exported on a page of their own.
// Every control is made here, so that a page without scripts has none that does nothing.
"use strict";
(() => {
  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
  const PAGE = meta("lab-page");
  const MARKS = { hit: "It came as I said", partly: "Partly", miss: "It came otherwise" };
  const MOST_FINDINGS = 8;

  // Nothing that lies in the storage is trusted to have the right shape.
  const store = labStore("predictions");
  function read() {
    const whole = (entry) => entry && typeof entry === "object" && typeof entry.text === "string";
    return Object.fromEntries(Object.entries(store.read()).filter(([, entry]) => whole(entry)).map(([id, entry]) => [id, {
      text: entry.text,
      at: String(entry.at ?? ""),
      question: String(entry.question ?? ""),
      title: String(entry.title ?? ""),
      mark: entry.mark in MARKS ? entry.mark : "",
      note: String(entry.note ?? ""),
      came: Array.isArray(entry.came) ? entry.came.map(String) : [],
    }]));
  }
  function change(id, fields) {
    const all = read();
    if (fields) all[id] = { ...all[id], ...fields };
    else delete all[id];
    store.write(all);
  }

  // An element; strings among its children become text, never markup.
  function make(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "for" || name === "role") made.setAttribute(name, value);
      else made[name] = value;
    }
    made.append(...children);
    return made;
  }
  const plain = (node) => {
    const copy = node.cloneNode(true);
    copy.querySelectorAll(".headerlink, script, style, .lab-mark, .lab-how").forEach((part) => part.remove());
    return copy.textContent.replace(/\s+/g, " ").trim();
  };
  const day = (at) => (/^\d{4}-\d\d-\d\d/.test(at) ? at.slice(0, 10) : "");

  // What the page found out after a box: claims and figures up to the next box or, once there is one, the next heading.
  function findings(box) {
    const scope = box.closest("article") ?? document;
    const marks = [...scope.querySelectorAll(".admonition.predict, h2, .lab-claim, .lab-said, figure:not(.lab-diagram)")];
    const found = [];
    for (const node of marks.slice(marks.indexOf(box) + 1)) {
      if (node.matches(".predict") || node.closest("#exercises")) break;
      if (node.matches("h2")) {
        if (found.length) break;
        continue;
      }
      if (node.matches("figure") && !node.querySelector("figcaption")) continue;
      found.push(node);
    }
    const said = found.filter((node) => !node.matches("figure") || node.querySelector(".caption-text")); // not to be looked at only
    return (said.length ? said : found).slice(0, MOST_FINDINGS);
  }
  function told(finding) {
    if (finding.matches(".lab-said")) return `${finding.dataset.holds === "true" ? "✓ holds" : "✗ does not hold on this run"}: ${plain(finding)}`;
    const [head, body] = finding.matches("figure") ? [".caption-number", ".caption-text"] : [".lab-verdict", ".lab-text"];
    const parts = [head, body].map((part) => finding.querySelector(part)).filter(Boolean).map(plain);
    return parts.filter(Boolean).join(": ") || plain(finding.querySelector("figcaption") ?? finding);
  }

  function setUp(box) {
    const id = `${PAGE}#${box.id}`;
    const question = [...box.children].filter((part) => !part.matches(".admonition-title, .lab-prediction"))
      .map(plain).join(" ");
    const heading = document.querySelector("article h1");
    const title = heading ? plain(heading) : document.title;
    const found = findings(box);
    const came = found.map(told);
    const host = make("div", {});
    const status = make("p", { className: "lab-prediction-status", role: "status" });
    box.append(make("div", { className: "lab-prediction" }, host, status));
    let reminders = [];

    function ask(focus) {
      reminders.forEach((note) => note.remove());
      reminders = [];
      const text = make("textarea", { id: `${box.id}-text`, rows: 2, required: true });
      text.setAttribute("aria-describedby", `${box.id}-kept`);
      const form = make("form", {},
        make("label", { for: text.id }, "Your prediction"), text,
        make("p", { id: `${box.id}-kept`, className: "lab-small" },
          "Kept in this browser only. Once you commit, what the run gave is shown beside it."),
        make("button", { type: "submit" }, "Commit"));
      form.noValidate = true;
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (!text.value.trim()) {
          text.setAttribute("aria-invalid", "true");
          status.textContent = "Write something first, with a number if you can.";
          text.focus();
          return;
        }
        change(id, { text: text.value.trim(), at: new Date().toISOString(), question, title, mark: "", note: "", came });
        status.textContent = !store.kept ? "This browser keeps nothing for this site: your answer lasts until you leave." : "Committed.";
        show(true);
      });
      host.replaceChildren(form);
      if (focus) text.focus();
    }

    function show(focus) {
      const entry = read()[id];
      const links = make("ul", {}, ...found.map((finding, i) => {
        finding.id ||= `${box.id}-finding-${i + 1}`;
        return make("li", {}, make("a", { href: `#${finding.id}` }, came[i]));
      }));
      const beside = make("p", { tabIndex: -1, className: "lab-came" }, make("strong", {}, "What the run gave"));
      const marks = make("fieldset", {}, make("legend", {}, "Was it right?"));
      for (const [mark, words] of Object.entries(MARKS)) {
        const radio = make("input", { type: "radio", name: `${box.id}-mark`, value: mark, checked: entry.mark === mark });
        radio.addEventListener("change", () => {
          change(id, { mark });
          status.textContent = `Marked: ${words}.`;
        });
        marks.append(make("label", {}, radio, words));
      }
      const note = make("textarea", { id: `${box.id}-note`, rows: 2, value: entry.note });
      note.addEventListener("change", () => {
        change(id, { note: note.value.trim() });
        status.textContent = "Note kept.";
      });
      const back = make("button", { type: "button", className: "lab-quiet" }, "Withdraw this prediction");
      back.addEventListener("click", () => {
        change(id, null);
        status.textContent = "Withdrawn.";
        ask(true);
      });
      host.replaceChildren(
        make("p", {}, make("strong", {}, "You predicted"), day(entry.at) ? ` on ${day(entry.at)}` : ""),
        make("blockquote", {}, entry.text),
        beside, ...(found.length ? [links] : [make("p", {}, "It stands in the cells below.")]),
        marks, make("label", { for: note.id }, "What the run gave, and what would have to be true for it to fit?"), note, back);
      remind(entry);
      change(id, { came }); // a later build may have found other numbers
      if (focus) beside.focus();
    }

    // The answer once more, right before the first thing that speaks to it.
    function remind(entry) {
      if (!found.length) return;
      const first = found[0].closest(".cell") ?? found[0];
      const note = make("aside", { className: "lab-reminder", "aria-label": "Your prediction" },
        make("a", { href: `#${box.id}` }, "You predicted"), `: ${entry.text}`);
      first.before(note);
      reminders.push(note);
    }

    if (read()[id]) show(false);
    else ask(false);
  }

  // The page that lists them.
  function list(host) {
    const places = [...document.querySelectorAll(".lab-log-entry")];
    const known = new Set(places.map((place) => `${place.dataset.page}#${place.dataset.box}`));
    const summary = make("p", { role: "status" });
    const exporting = make("button", { type: "button" }, "Export as Markdown");
    const clearing = make("button", { type: "button", className: "lab-quiet" }, "Delete all");
    const lost = make("section", {});
    host.append(summary, make("p", { className: "lab-log-buttons" }, exporting, clearing));
    host.parentElement.append(lost);

    const told = (entry) => [
      make("p", {}, make("strong", {}, "You predicted"), day(entry.at) ? ` on ${day(entry.at)}` : ""),
      make("blockquote", {}, entry.text),
      ...(entry.came.length ? [make("p", {}, make("strong", {}, "What the run gave")),
        make("ul", {}, ...entry.came.map((line) => make("li", {}, line)))] : []),
      make("p", { className: `lab-mark-${entry.mark || "open"}` }, make("strong", {}, MARKS[entry.mark] ?? "Not marked yet"),
        entry.note ? `: ${entry.note}` : ""),
    ];
    function refresh() {
      const all = read();
      for (const place of places) {
        place.querySelector(".lab-log-answer")?.remove();
        const entry = all[`${place.dataset.page}#${place.dataset.box}`];
        if (entry) place.append(make("div", { className: "lab-log-answer" }, ...told(entry)));
      }
      const others = Object.entries(all).filter(([id]) => !known.has(id));
      const onBench = ([id]) => id.includes("#bench-");
      const listed = (title, some) => (some.length ? [make("h2", {}, title), ...some.map(([, entry]) => make("div", { className: "lab-log-entry" },
        make("p", { className: "lab-log-question" }, `${entry.title}: ${entry.question}`), ...told(entry)))] : []);
      lost.replaceChildren(...listed("From the patch bench", others.filter(onBench)),
        ...listed("From boxes that this book no longer has", others.filter((one) => !onBench(one))));
      const entries = Object.values(all);
      const marked = (mark) => entries.filter((entry) => entry.mark === mark).length;
      summary.textContent = entries.length
        ? `${entries.length} committed, of ${places.length} boxes: ${marked("hit")} as you said, ${marked("partly")} partly, `
          + `${marked("miss")} otherwise, ${marked("")} not marked yet.`
        : `Nothing committed yet. There are ${places.length} boxes.`;
      exporting.disabled = clearing.disabled = !entries.length;
    }
    exporting.addEventListener("click", () => {
      const file = URL.createObjectURL(new Blob([markdown(read())], { type: "text/markdown" }));
      make("a", { href: file, download: "interp-lab-predictions.md" }).click();
      setTimeout(() => URL.revokeObjectURL(file), 10_000);
    });
    clearing.addEventListener("click", () => {
      const count = Object.keys(read()).length;
      if (!confirm(`Delete all ${count} predictions that this browser keeps for this book? This cannot be undone.`)) return;
      store.forget();
      refresh();
      summary.textContent = `Deleted. There are ${places.length} boxes.`;
      summary.tabIndex = -1;
      summary.focus();
    });
    addEventListener("storage", refresh); // another tab
    addEventListener("pageshow", refresh); // back from a chapter
    refresh();

    function markdown(all) {
      const lines = ["# My predictions", "", summary.textContent + (meta("lab-model") ? ` Model: ${meta("lab-model")}.` : "")];
      const order = [...new Set([...known, ...Object.keys(all)])].filter((id) => all[id]);
      let chapter = null;
      for (const entry of order.map((id) => all[id])) {
        if (entry.title !== chapter) lines.push("", `## ${(chapter = entry.title)}`);
        lines.push("", `**${entry.question}**`, "", ...entry.text.split(/\r?\n/).map((line) => `> ${line}`.trimEnd()), "");
        if (entry.came.length) lines.push("What the run gave:", "", ...entry.came.map((line) => `* ${line}`), "");
        lines.push(`${MARKS[entry.mark] ?? "Not marked yet"}${entry.note ? `: ${entry.note}` : "."}`);
      }
      return `${lines.join("\n")}\n`;
    }
  }

  document.querySelectorAll(".admonition.predict[id^='predict']").forEach(setUp);
  const log = document.getElementById("lab-log");
  if (log) list(log);
})();
