// The patch bench: the reader patches one activation, and sees what was recorded of that run. The files of the pairs are
// scripts, so that pages opened without a server can load them too.
"use strict";
globalThis.labBench = (() => {
  const records = {}, waiting = {};
  const root = document.documentElement.dataset.content_root || "./";
  function take(record) {
    records[record.name] = record;
    waiting[record.name]?.forEach((done) => done(record));
    delete waiting[record.name];
  }
  // A pair's script pushes its record here, before this script ran or after.
  (globalThis.labBenchPairs ?? []).forEach(take);
  globalThis.labBenchPairs = { push: take };
  return {
    get(name) {
      if (records[name]) return Promise.resolve(records[name]);
      return new Promise((done, failed) => {
        if (waiting[name]) {
          waiting[name].push(done);
          return;
        }
        waiting[name] = [done];
        const script = document.createElement("script");
        script.src = `${root}_static/bench/${name}.js`;
        script.onerror = () => {
          delete waiting[name];
          script.remove();
          failed(new Error(name));
        };
        document.head.append(script);
      });
    },
  };
})();

(() => {
  const UNKEPT = "This browser keeps nothing for this site: what you write lasts until you leave.";
  const MARKS = { hit: "It came as I said", partly: "Partly", miss: "It came otherwise" };
  const predictions = labStore("predictions"), done = labStore("bench");
  const PAGE = document.querySelector('meta[name="lab-page"]')?.content || "patch-bench";

  function make(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
      else made[name] = value;
    }
    made.append(...children);
    return made;
  }
  const signed = (milli) => `${milli < 0 ? "−" : "+"}${(Math.abs(milli) / 1000).toFixed(2)}`;
  const percent = (share) => `${(100 * share).toFixed(share && Math.abs(share) < 0.01 ? 1 : 0).replace("-", "−")} %`;
  const quoted = (token) => `“${token.replaceAll("\n", "\\n")}”`;
  const shown = (token) => (token === "<|im_start|>" ? "start" : token.trim() || quoted(token));

  function setUp(bench) {
    const index = JSON.parse(bench.querySelector(".lab-bench-index").textContent);
    const live = bench.querySelector(".lab-bench-live");
    const tables = bench.querySelector(".lab-bench-tables");
    const state = { pair: index.pairs[0].name, direction: "denoising", kind: "resid_pre" };
    let record = null, chosen = null, unasked = false, buttons = new Map();

    // The controls.
    const pairs = make("select", { id: "lab-bench-pair" }, ...index.pairs.map((one) => make("option", { value: one.name }, one.title)));
    const radios = (name, words, legend) => make("fieldset", {}, make("legend", {}, legend), ...Object.entries(words).map(([value, text]) => make("label", {},
      make("input", { type: "radio", name: `lab-bench-${name}`, value, checked: state[name] === value }), text)));
    const controls = make("form", { className: "lab-bench-controls" },
      make("p", {}, make("label", { for: pairs.id }, "Pair of sentences"), pairs),
      radios("direction", index.directions, "Direction"), radios("kind", index.kinds, "What is patched"));
    const sentences = make("div", { className: "lab-bench-sentences" });
    const gate = make("div", { className: "lab-bench-gate" });
    const grid = make("div", { className: "lab-bench-wide" });
    const legend = make("p", { className: "lab-bench-legend" });
    const target = make("div", { className: "lab-bench-target" });
    const says = make("p", { className: "lab-bench-says", role: "status" });
    const more = make("p", { className: "lab-bench-more", role: "status" });
    const result = make("div", { className: "lab-bench-result" });
    const yours = make("div", { className: "lab-bench-yours" });
    const missions = make("section", { className: "lab-bench-missions" });
    live.replaceChildren(controls, sentences, gate, make("div", { className: "lab-bench-work" },
      make("div", { className: "lab-bench-top" }, make("div", { className: "lab-bench-room" }, target), says), make("div", { className: "lab-bench-left" }, legend, grid), make("div", { className: "lab-bench-side" }, result, more, yours)), missions);
    tables.open = false;

    controls.addEventListener("change", () => go({
      pair: pairs.value,
      direction: controls.querySelector('[name="lab-bench-direction"]:checked').value,
      kind: controls.querySelector('[name="lab-bench-kind"]:checked').value,
    }));
    controls.addEventListener("submit", (event) => event.preventDefault());

    function go(wanted) {
      Object.assign(state, wanted);
      pairs.value = state.pair;
      for (const name of ["direction", "kind"]) controls.querySelector(`[name="lab-bench-${name}"][value="${state[name]}"]`).checked = true;
      chosen = null;
      // What stands there is of another pair or kind, and its cells would be taken for those of this one.
      [sentences, gate, grid, legend, target, result, more, yours].forEach((part) => part.replaceChildren());
      const asked = state.pair;
      return labBench.get(asked).then((found) => {
        if (asked !== state.pair) return;
        record = found;
        draw();
      }, () => {
        if (asked !== state.pair) return;
        record = null;
        says.textContent = "The numbers of this pair could not be loaded. The tables below have the strongest cells; try again by choosing the pair once more.";
      });
    }

    // What is where.
    const start = () => (state.kind === "z" ? 0 : record.start);
    const width = () => (state.kind === "z" ? record.heads : record.clean.length - record.start);
    const number = (layer, column) => (column < start() ? -1 : record.layers.indexOf(layer) * width() + column - start());
    const kept = () => record.cells[state.kind][state.direction];
    const ends = () => {
      const [clean, corrupted] = [record.runs.clean.diff[0], record.runs.corrupted.diff[0]];
      return state.direction === "denoising" ? { from: corrupted, to: clean } : { from: clean, to: corrupted };
    };
    const diff = (layer, column) => (column < start() ? ends().from : kept().diff[number(layer, column)]);
    const way = (milli) => (milli - ends().from) / (ends().to - ends().from);
    const base = () => (state.direction === "denoising" ? "corrupted" : "clean");
    const other = () => (state.direction === "denoising" ? "clean" : "corrupted");
    const top = (entry, i) => Array.from({ length: 5 }, (_, k) => [record.words[entry.top[5 * i + k]], entry.share[5 * i + k] / 1000]);
    const place = (layer, column) => (state.kind === "z" ? `Head ${layer}.${column}` : `${{ resid_pre: "The stream before", attn_out: "Attention of", mlp_out: "The MLP of" }[state.kind]} layer ${layer} at ${quoted(shown(record.clean[column]))}, token ${column}`);

    function draw() {
      buttons = new Map();
      const different = record.clean.map((token, i) => token !== record.corrupted[i]);
      const row = (name) => make("tr", {}, make("th", { scope: "row" }, name[0].toUpperCase() + name.slice(1)), ...record[name].slice(1).map((token, i) =>
        make("td", different[i + 1] ? { className: "lab-bench-differs" } : {}, shown(token))));
      const scroll = make("div", { className: "lab-bench-wide", tabIndex: 0, role: "region", "aria-label": "The two sentences, token by token" },
        make("table", {}, make("tbody", {}, row("clean"), row("corrupted"))));
      const [right, wrong] = record.answers;
      sentences.replaceChildren(scroll, make("p", {}, `Right: ${quoted(right)}, wrong: ${quoted(wrong)}. Logit difference ${signed(record.runs.clean.diff[0])} nats in the clean run and ${signed(record.runs.corrupted.diff[0])} in the corrupted one.`));
      const key = `${PAGE}#bench-${state.pair}-${state.direction}-${state.kind}`;
      const entry = predictions.read()[key];
      if (entry && typeof entry.text === "string") reveal(key);
      else if (unasked) reveal(null);
      else ask(key);
    }

    // Predict first.
    function ask(key) {
      const text = make("textarea", { id: "lab-bench-text", rows: 2, "aria-describedby": "lab-bench-kept" });
      const question = `${record.title}, ${index.directions[state.direction]}, ${index.kinds[state.kind]}: where will the news be?`;
      const skip = make("button", { type: "button", className: "lab-quiet" }, "Show without asking");
      const form = make("form", { noValidate: true },
        make("label", { for: text.id }, "Where will the news be? Write layers and tokens, or heads"), text,
        make("p", { id: "lab-bench-kept", className: "lab-small" }, "Kept with your predictions, in this browser only."),
        make("button", { type: "submit" }, "Commit and show"), " ", skip);
      says.textContent = "Predict first, or show the cells without.";
      skip.addEventListener("click", () => {
        unasked = true;
        reveal(null, true);
      });
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (!text.value.trim()) {
          says.textContent = "Write something first, or show the cells without.";
          text.focus();
          return;
        }
        const all = predictions.read();
        all[key] = { text: text.value.trim(), at: new Date().toISOString(), question, title: "The patch bench", mark: "", note: "", came: strongest() };
        predictions.write(all);
        reveal(key, true);
      });
      gate.replaceChildren(form);
    }
    function strongest() {
      const all = record.layers.flatMap((layer) => Array.from({ length: width() }, (_, i) => [layer, start() + i]));
      const ranked = all.map(([layer, column]) => [way(diff(layer, column)), layer, column]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
      return ranked.slice(0, 3).map(([share, layer, column]) => `${place(layer, column)}: ${percent(share)} of the way to the ${other()} run`);
    }

    function reveal(key, focus) {
      gate.replaceChildren();
      cellsOf();
      run();
      mine(key);
      says.textContent = `Drag a cell of the ${other()} run into the ${base()} one, or choose it by click or arrow keys.${key && !predictions.kept ? ` ${UNKEPT}` : ""}`;
      if (focus) [...buttons.values()].find((one) => one.tabIndex === 0)?.focus({ preventScroll: true });
    }
    function mine(key) {
      const entry = key && predictions.read()[key];
      if (!entry) return yours.replaceChildren();
      const marks = make("fieldset", {}, make("legend", {}, "Was it right?"));
      for (const [mark, words] of Object.entries(MARKS)) {
        const radio = make("input", { type: "radio", name: "lab-bench-mark", value: mark, checked: entry.mark === mark });
        radio.addEventListener("change", () => {
          const all = predictions.read();
          all[key] = { ...all[key], mark };
          predictions.write(all);
        });
        marks.append(make("label", {}, radio, words));
      }
      yours.replaceChildren(make("p", {}, make("strong", {}, "You predicted"), `: ${entry.text}`),
        make("p", {}, "The strongest cells: ", strongest().join("; "), "."), marks);
    }

    // The grid: layers upwards, tokens or heads to the right.
    function cellsOf() {
      const columns = state.kind === "z" ? Array.from({ length: record.heads }, (_, i) => i) : record.clean.map((_, i) => i).slice(1);
      const head = (name, words) => make("div", { role: "row" }, make("span", { role: "rowheader", className: "lab-bench-corner" }, name), ...columns.map(words));
      const heads = state.kind === "z"
        ? [head("head", (column) => make("span", { role: "columnheader", className: "lab-bench-column" }, String(column)))]
        : [head("clean", (column) => token("clean", column)), head("corrupted", (column) => token("corrupted", column))];
      const rows = [...record.layers].reverse().map((layer) => make("div", { role: "row" },
        make("span", { role: "rowheader" }, String(layer)), ...columns.map((column) => button(layer, column))));
      const table = make("div", { className: "lab-bench-grid", role: "grid", "aria-label": `${index.kinds[state.kind]}, ${index.directions[state.direction]}: layers by ${state.kind === "z" ? "heads" : "tokens"}` }, ...heads, ...rows);
      table.style.setProperty("--columns", columns.length);
      grid.replaceChildren(table);
      grid.scrollLeft = grid.scrollWidth; // where the answer is written
      buttons.get(`${record.layers[0]}.${columns.find((column) => column >= start())}`).tabIndex = 0;
      table.addEventListener("keydown", (event) => move(event, columns));
      draggable(table);
      legend.replaceChildren(make("b", {}, `From the ${other()} run. `), make("span", { className: "lab-bench-swatch lab-against" }), " away from the ", other(), " run, ",
        make("span", { className: "lab-bench-swatch" }), " no change, ", make("span", { className: "lab-bench-swatch lab-towards" }), " towards it. Rows are layers, the first at the bottom.");
    }
    function token(run, column) {
      const differs = record.clean[column] !== record.corrupted[column];
      return make("span", { role: "columnheader", className: `lab-bench-column lab-bench-token${differs ? " lab-bench-differs" : ""}` },
        make("span", {}, shown(record[run][column])));
    }
    function button(layer, column) {
      const share = way(diff(layer, column));
      const made = make("button", { type: "button", role: "gridcell", tabIndex: -1,
        className: share < 0 ? "lab-against" : "lab-towards", "aria-label": `${place(layer, column)}: ${percent(share)}` });
      made.style.setProperty("--share", `${Math.round(100 * Math.min(1, Math.abs(share)))}%`);
      made.dataset.cell = `${layer}.${column}`;
      made.addEventListener("click", () => choose(layer, column));
      made.addEventListener("focus", () => { if (made.matches(":focus-visible")) choose(layer, column); });
      buttons.set(`${layer}.${column}`, made);
      return made;
    }
    function move(event, columns) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const at = event.target.dataset?.cell?.split(".").map(Number);
      if (!at) return;
      const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [5, 0], PageDown: [-5, 0],
        Home: [0, -columns.length], End: [0, columns.length] };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const [up, right] = steps[event.key];
      const within = (i, list) => list[Math.max(0, Math.min(list.length - 1, i))];
      const layer = within(record.layers.indexOf(at[0]) + up, record.layers), column = within(columns.indexOf(at[1]) + right, columns);
      buttons.get(`${layer}.${column}`).focus();
      choose(layer, column);
    }

    // The run that the cells are put into, and what was put there last.
    function run(put = "") {
      target.replaceChildren(make("b", {}, `Into the ${base()} run`), make("span", {}, `${record[base()].slice(1).join("").trim()} …`),
        put ? make("span", { className: "lab-bench-chip" }, put) : make("span", { className: "lab-bench-empty" }, "nothing of the other run is in it yet"));
    }
    const short = (layer, column) => (state.kind === "z" ? `head ${layer}.${column}` : `layer ${layer} at ${quoted(shown(record[other()][column]))}`);

    // A cell is dragged by mouse or pen as soon as it moves, by touch after it was held, since a touch that moves scrolls.
    // Only the run decides where it lands: layer and token stay what they are.
    function draggable(table) {
      let drag = null;
      const swallow = (click) => click.stopPropagation(); // the click that ends a drag chooses nothing
      const over = (event) => Boolean(document.elementFromPoint(event.clientX, event.clientY)?.closest(".lab-bench-target"));
      const begin = () => {
        drag.chip = document.body.appendChild(make("span", { className: "lab-bench-chip lab-bench-held" }, short(...drag.cell)));
        bench.classList.add("lab-dragging");
        const area = target.getBoundingClientRect();
        if (area.top < 0 || area.bottom > innerHeight) { // out of sight: it comes along, and its place is kept
          target.parentNode.style.minHeight = `${area.height}px`;
          target.classList.add("lab-float");
        }
        follow();
      };
      const follow = () => {
        drag.chip.style.left = `${drag.last.clientX}px`;
        drag.chip.style.top = `${drag.last.clientY}px`;
        target.classList.toggle("lab-over", over(drag.last));
      };
      const end = () => {
        if (!drag) return;
        clearTimeout(drag.timer);
        drag.chip?.remove();
        bench.classList.remove("lab-dragging");
        target.classList.remove("lab-over", "lab-float");
        target.parentNode.style.minHeight = "";
        drag = null;
      };
      table.addEventListener("pointerdown", (event) => {
        const cell = event.target.dataset?.cell;
        if (!cell || drag || event.button !== 0 || !event.isPrimary) return;
        drag = { cell: cell.split(".").map(Number), from: event, last: event, touch: event.pointerType === "touch" };
        event.target.setPointerCapture(event.pointerId);
        if (drag.touch) drag.timer = setTimeout(begin, 250);
      });
      table.addEventListener("pointermove", (event) => {
        if (!drag || event.pointerId !== drag.from.pointerId) return;
        drag.last = event;
        const moved = Math.hypot(event.clientX - drag.from.clientX, event.clientY - drag.from.clientY) > 6;
        if (drag.chip) follow();
        else if (moved && drag.touch) end();
        else if (moved) begin();
      });
      table.addEventListener("pointerup", (event) => {
        setTimeout(() => table.removeEventListener("click", swallow, true));
        if (!drag || event.pointerId !== drag.from.pointerId) return;
        const { chip, cell } = drag, landed = chip && over(event);
        end();
        if (!chip) return; // a click
        table.addEventListener("click", swallow, true);
        if (!landed) return;
        setTimeout(() => {
          choose(...cell);
          buttons.get(cell.join(".")).focus({ preventScroll: true });
        });
      });
      table.addEventListener("pointercancel", end);
      table.addEventListener("touchmove", (event) => { if (drag?.chip) event.preventDefault(); }, { passive: false });
      table.addEventListener("contextmenu", (event) => { if (drag?.touch) event.preventDefault(); });
      table.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || !drag?.chip) return;
        end();
        table.addEventListener("click", swallow, true);
      });
    }

    function choose(layer, column) {
      if (chosen === `${layer}.${column}`) return;
      chosen = `${layer}.${column}`;
      for (const [name, one] of buttons) {
        const [l, c] = name.split(".").map(Number);
        one.tabIndex = name === chosen ? 0 : -1;
        one.setAttribute("aria-selected", String(name === chosen));
        one.classList.toggle("lab-cone", column >= start() && l > layer && (state.kind === "z" || c >= column));
      }
      run(short(layer, column));
      const milli = diff(layer, column), i = number(layer, column), share = way(milli);
      const now = i < 0 ? top(record.runs[base()], 0) : top(kept(), i);
      const later = column < start() ? "The two sentences are the same up to here, so nothing changes."
        : layer === record.layers.at(-1) ? "It is the last layer: only the answer can have changed after it."
          : `What can have changed is outlined: the layers above ${layer}${state.kind === "z" ? "" : ", at this token and later ones"}.`;
      const found = mission(layer, column);
      says.replaceChildren(
        `${place(layer, column)}, ${other()} into ${base()}: the likeliest next word is ${quoted(now[0][0])} (${percent(now[0][1])}). Logit difference ${signed(milli)} nats, ${percent(share)} of the way from the ${base()} run to the ${other()} one.`,
        ...(found ? [" ", make("strong", {}, `Mission done: ${found.found}`)] : []));
      more.textContent = average(layer, column) + later;
      result.replaceChildren(scale(milli), make("div", { className: "lab-bench-tops" },
        five("Corrupted run", top(record.runs.corrupted, 0)), five("Patched", now), five("Clean run", top(record.runs.clean, 0))));
    }
    function average(layer, column) {
      const kind = record.average?.kinds[state.kind], i = number(layer, column);
      if (!kind || i < 0) return "";
      const part = (name) => percent(kind[name][i] / 1000);
      return `On average over ${record.average.prompts} sentences like this one (${record.average.pairs} pairs of names) the same patch goes ${part("mean")} of the way (${part("low")} to ${part("high")}). `;
    }
    function five(title, entries) {
      return make("table", {}, make("caption", {}, title), make("tbody", {}, ...entries.map(([word, share]) =>
        make("tr", record.answers.includes(word) ? { className: word === record.answers[0] ? "lab-right" : "lab-wrong" } : {},
          make("th", { scope: "row" }, quoted(word)), make("td", {}, `${(100 * share).toFixed(1)} %`)))));
    }
    function scale(milli) {
      const { clean, corrupted } = record.runs, all = [clean.diff[0], corrupted.diff[0], milli];
      const low = Math.min(...all), high = Math.max(...all), pad = 0.08 * (high - low);
      const left = (value) => `${(100 * (value - low + pad)) / (high - low + 2 * pad)}%`;
      const mark = (name, value) => {
        const made = make("i", { className: `lab-bench-${name}` });
        made.style.left = left(value);
        return made;
      };
      const line = make("div", { className: "lab-bench-scale", "aria-hidden": "true" }, mark("corrupted", corrupted.diff[0]), mark("clean", clean.diff[0]), mark("now", milli));
      const words = make("p", { className: "lab-bench-ends", "aria-hidden": "true" },
        make("span", {}, `corrupted ${signed(corrupted.diff[0])}`), make("b", {}, `patched ${signed(milli)}`), make("span", {}, `clean ${signed(clean.diff[0])}`));
      return make("div", {}, line, words);
    }

    // The missions.
    const reached = () => {
      const all = done.read();
      return new Set(index.missions.map((one) => one.name).filter((name) => all[name] === true));
    };
    function mission(layer, column) {
      const found = index.missions.find((one) => ["pair", "direction", "kind"].every((name) => one[name] === state[name])
        && one.cells.some(([l, c]) => l === layer && c === column));
      if (!found) return null;
      done.write({ ...done.read(), [found.name]: true });
      list();
      return found;
    }
    function list() {
      if (!index.missions.length) return;
      const have = reached();
      missions.replaceChildren(make("h2", { id: "lab-bench-missions-title" }, "Missions"),
        make("p", {}, `${have.size} of ${index.missions.length} done. The bench notices by itself when the chosen cell fulfils one.`),
        make("ol", {}, ...index.missions.map((one) => {
          const there = make("button", { type: "button", className: "lab-quiet" }, "Set up the bench");
          there.setAttribute("aria-label", `Set up the bench for: ${one.text}`);
          there.addEventListener("click", () => {
            go({ pair: one.pair, direction: one.direction, kind: one.kind }).then(() => {
              controls.scrollIntoView({ block: "start" });
              (gate.querySelector("textarea") ?? grid.querySelector('[tabindex="0"]'))?.focus({ preventScroll: true });
            });
          });
          return make("li", have.has(one.name) ? { className: "lab-bench-done" } : {},
            have.has(one.name) ? make("span", {}, "✓ Done. ") : "", one.text, " ", there);
        })));
    }
    list();
    go({});
  }
  document.querySelectorAll(".lab-bench").forEach(setUp);
})();
