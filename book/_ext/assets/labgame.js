// The detection game: one latent after the other is asked about, then counted, and the score is kept in this browser.
// Without this script the page has all contexts, and the answers in closed blocks.
"use strict";
(() => {
  const store = labStore("game");
  const UNKEPT = "This browser keeps nothing for this site: your score lasts until you leave.";

  function make(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "role") made.setAttribute(name, value);
      else made[name] = value;
    }
    made.append(...children);
    return made;
  }

  // Of what is kept only whole entries count: how many contexts, how many the reader had right, and how many the rule.
  function played() {
    const whole = ([, one]) => one && typeof one.answers === "string" && one.n === one.answers.length
      && [one.right, one.rule].every((count) => Number.isInteger(count) && count >= 0 && count <= one.n);
    return Object.fromEntries(Object.entries(store.read()).filter(whole));
  }
  function total(entries) {
    const sum = (name) => entries.reduce((all, one) => all + one[name], 0);
    return { n: sum("n"), right: sum("right"), rule: sum("rule") };
  }

  // A share of n with its 95 % interval (Wilson 1927).
  function said({ right, n }) {
    const z = 1.959964, p = right / n, d = 1 + z * z / n;
    const middle = (p + z * z / (2 * n)) / d, half = z * Math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / d;
    return `${right} of ${n} (${Math.max(0, middle - half).toFixed(2)} to ${Math.min(1, middle + half).toFixed(2)})`;
  }

  function setUp(game) {
    const rounds = [...game.querySelectorAll(".lab-round")];
    // Scores of contexts that the page no longer asks about would count for others.
    const here = new Set(rounds.map((round) => round.dataset.round));
    const current = () => Object.fromEntries(Object.entries(played()).filter(([id]) => here.has(id)));
    const status = make("p", { className: "lab-game-status", role: "status" });
    const back = make("button", { type: "button", className: "lab-quiet" }, "Previous latent");
    const next = make("button", { type: "button", className: "lab-quiet" }, "Next latent");
    const again = make("button", { type: "button", className: "lab-quiet" }, "Delete my score");
    let at = 0;

    function go(to, focus) {
      at = to;
      rounds.forEach((round, i) => { round.hidden = i !== at; });
      back.disabled = at === 0;
      next.disabled = at === rounds.length - 1;
      tell();
      if (!focus) return;
      const title = rounds[at].querySelector(".lab-round-title");
      title.focus({ preventScroll: true });
      title.scrollIntoView({ block: "center" });
    }
    function tell(more = "") {
      const all = Object.values(current());
      const sum = total(all);
      status.textContent = more + (all.length
        ? `So far, ${all.length} of ${rounds.length} latents: you ${said(sum)}, their rules ${said({ right: sum.rule, n: sum.n })}, `
          + `chance ${sum.n / 2} of ${sum.n}.` : "");
      again.hidden = !all.length;
    }

    function ask(round) {
      const id = round.dataset.round;
      const latent = id.split("-")[0];
      const key = [...atob(round.dataset.key)].map((one) => one.charCodeAt(0));
      const answers = document.getElementById(`answers-${latent}`);
      const items = [...round.querySelectorAll(".lab-asked > li")];
      round.querySelector(".lab-round-title").tabIndex = -1;
      const form = make("form", { noValidate: true });
      const list = round.querySelector(".lab-asked");
      list.before(form);
      const button = make("button", { type: "submit" }, "Show which were right");
      const short = make("p", { className: "lab-short", role: "alert" });
      const result = make("div", { className: "lab-result", tabIndex: -1 });
      form.append(list, short, button, result);

      function blank() {
        result.replaceChildren();
        button.hidden = false;
        items.forEach((item, i) => {
          const text = item.querySelector("p");
          text.id = `ask-${id}-${i}`;
          const choices = make("div", { className: "lab-choices" });
          for (const [value, words] of [["1", "fires"], ["0", "does not fire"]]) {
            const radio = make("input", { type: "radio", name: `ask-${id}-${i}`, value, "aria-describedby": text.id });
            choices.append(make("label", {}, radio, words));
          }
          const token = text.querySelector("mark").textContent;
          const legend = make("legend", { className: "lab-unseen" }, `Context ${i + 1}: does it fire at "${token.trim() || token}"?`);
          item.replaceChildren(make("fieldset", {}, legend, text, choices));
        });
      }

      function show({ answers: given, right, rule, n }, focus) {
        short.textContent = "";
        button.hidden = true;
        const words = [...answers.querySelectorAll("li")].map((line) => line.textContent);
        items.forEach((item, i) => {
          const good = given[i] === String(key[i] & 1);
          item.querySelectorAll("input").forEach((radio) => {
            radio.checked = radio.value === given[i];
            radio.disabled = true;
          });
          item.querySelector(".lab-verdict-line")?.remove();
          item.append(make("p", { className: "lab-verdict-line" },
            make("span", { className: good ? "lab-yes" : "lab-no" }, good ? "✓ Right." : "✗ Wrong."), ` ${words[i]}`));
        });
        const row = (name, ...cells) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell)));
        const head = make("thead", {}, make("tr", {}, ...["who", "right (95 % interval)"].map((name) => make("th", { scope: "col" }, name))));
        const table = make("table", { className: "lab-table" }, head, make("tbody", {}, row("You", said({ right, n })),
          row("Its rule", said({ right: rule, n })), row("Chance", `${n / 2} of ${n}`)));
        result.replaceChildren(make("p", {}, make("strong", {}, `Latent ${latent}: you had ${right} of ${n} right.`)), table,
          answers.querySelector("p").cloneNode(true));
        if (focus) result.focus();
      }

      form.addEventListener("submit", (event) => {
        event.preventDefault();
        const given = items.map((item) => item.querySelector("input:checked")?.value ?? "");
        const open = given.filter((one) => !one).length;
        if (open) {
          short.textContent = `${open} of ${items.length} contexts have no answer yet.`;
          items[given.indexOf("")].querySelector("input").focus();
          return;
        }
        const count = (bit) => key.filter((one, i) => (bit === null ? given[i] : String((one >> bit) & 1)) === String(one & 1)).length;
        const entry = { answers: given.join(""), right: count(null), rule: count(1), n: key.length };
        const all = current();
        all[id] = entry;
        store.write(all);
        show(entry, true);
        tell(store.kept ? "" : `${UNKEPT} `);
      });
      blank();
      const before = current()[id];
      if (before && before.n === key.length) show(before, false);
      return blank;
    }

    const blanks = rounds.map(ask);
    back.addEventListener("click", () => go(at - 1, true));
    next.addEventListener("click", () => go(at + 1, true));
    again.addEventListener("click", () => {
      if (!confirm("Delete the score of this game? The answers that you have seen can't be unseen.")) return;
      store.forget();
      blanks.forEach((blank) => blank());
      go(0, true);
      status.textContent = "Deleted.";
    });
    const controls = make("p", { className: "lab-game-buttons" }, back, next, again);
    game.querySelector(".lab-game-answers").before(status, controls);
    game.classList.add("lab-playing");
    const open = rounds.findIndex((round) => !(round.dataset.round in current()));
    go(Math.max(0, open), false);
  }

  document.querySelectorAll(".lab-game").forEach(setUp);

  // The page of predictions has one line about the game.
  const log = document.getElementById("lab-log");
  const all = log ? Object.values(played()) : [];
  if (all.length) {
    const sum = total(all);
    log.after(make("p", { className: "lab-game-log" }, `The detection game, ${all.length === 1 ? "one latent" : `${all.length} latents`}: you had ${said(sum)} right, `
      + `their simple rules ${said({ right: sum.rule, n: sum.n })}, chance ${sum.n / 2} of ${sum.n}.`));
  }
})();
