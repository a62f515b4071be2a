// A figure's picture is on the page. Here a reader who asks for more gets it drawn by Plotly, which is fetched only then,
// in the colours of the page's scheme.
"use strict";
(() => {
  const PLOTLY = new URL("plotly.min.js", document.currentScript.src).href;
  const NARROW = 520; // pixels: below this a figure is on a phone

  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A template holds only defaults, so whatever a figure sets itself wins over this.
  function skin(colors) {
    const at = (name) => token(`--lab-figure-${name}`);
    const axis = {
      gridcolor: at("grid"), linecolor: at("line"), zerolinecolor: at("line"), tickcolor: at("line"),
      automargin: true, title: { standoff: 10 },
    };
    return {
      layout: {
        ...colors,
        font: { color: at("ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis, yaxis: axis,
        coloraxis: { colorbar: { outlinewidth: 0, thickness: 14 } },
        hoverlabel: {
          bgcolor: at("surface"), bordercolor: at("line"), align: "left",
          font: { color: at("ink"), family: getComputedStyle(document.body).fontFamily },
        },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: at("muted"), activecolor: at("ink") },
        legend: { bgcolor: "rgba(0,0,0,0)" },
        annotationdefaults: { arrowcolor: at("ink") },
        shapedefaults: { line: { color: at("line") } },
        margin: { l: 60, r: 16, t: 28, b: 48 },
      },
    };
  }

  // A long title is cut off on a phone, so it breaks at the space nearest to its middle.
  function inTwo(text) {
    const spaces = [...text.matchAll(/ /g)].map((found) => found.index);
    if (text.length < 26 || text.includes("<") || !spaces.length) return text;
    const middle = spaces.reduce((a, b) => (Math.abs(b - text.length / 2) < Math.abs(a - text.length / 2) ? b : a));
    return `${text.slice(0, middle)}<br>${text.slice(middle + 1)}`;
  }

  // On a phone the colour bar lies above the plot and the legend below it, so that the plot keeps its width.
  function fit(data, layout) {
    const lay = (bar) => (bar && (bar.x !== undefined || bar.y !== undefined) ? bar : {
      ...bar, orientation: "h", x: 0.5, xanchor: "center", y: 1.02, yanchor: "bottom", thickness: 10, len: 0.9,
    });
    for (const trace of data) {
      if (trace.colorbar || trace.type === "heatmap") trace.colorbar = lay(trace.colorbar);
    }
    for (const key of Object.keys(layout)) {
      if (key.startsWith("coloraxis")) layout[key].colorbar = lay(layout[key].colorbar);
    }
    for (const key of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      const axis = layout[key];
      if (axis.title?.text) axis.title.text = inTwo(axis.title.text);
      if (key.startsWith("x") && axis.tickvals?.length > 12) {
        const step = Math.ceil(axis.tickvals.length / 12);
        for (const ticks of ["tickvals", "ticktext"]) axis[ticks] = axis[ticks]?.filter((_, at) => at % step === 0);
      }
    }
    layout.font = { size: 11, ...layout.font };
    layout.legend = { orientation: "h", y: -0.25, yanchor: "top", x: 0, ...layout.legend };
    layout.margin = { ...layout.margin, l: Math.min(layout.margin?.l ?? 40, 40), r: 8 };
  }

  // Intervals on bars take the colour of the text: any fixed one would drown in one of the bars' colours or schemes.
  function whiskers(data) {
    return data.flatMap((trace, index) => ["error_x", "error_y"]
      .filter((key) => trace.type === "bar" && trace[key]?.array)
      .map((key) => ({ index, key, error: trace[key] })));
  }

  let fetched;
  const fetchPlotly = () => fetched ??= new Promise((done, failed) => {
    const script = Object.assign(document.createElement("script"), { src: PLOTLY, onload: done });
    script.onerror = () => { fetched = undefined; script.remove(); failed(); };
    document.head.append(script);
  });

  function draw(host) {
    const { data, layout, colors } = JSON.parse(host.querySelector("script").textContent);
    whiskers(data).forEach(({ error }) => { error.color = token("--lab-figure-ink"); });
    const touch = matchMedia("(pointer: coarse)").matches;
    if (host.clientWidth && host.clientWidth < NARROW) fit(data, layout);
    if (touch) layout.dragmode = false; // a finger scrolls the page
    host.labColors = colors;
    const canvas = document.createElement("div");
    canvas.className = "lab-canvas";
    host.append(canvas);
    host.classList.add("lab-drawn");
    Plotly.newPlot(canvas, data, { ...layout, autosize: true, template: skin(colors) }, {
      displaylogo: false,
      displayModeBar: touch ? false : "hover",
      showSendToCloud: false,
      plotlyServerURL: "", // a figure stays on this page
      modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
    });
    host.labCanvas = canvas;
    let width = host.clientWidth;
    new ResizeObserver(() => {
      if (!host.clientWidth || host.clientWidth === width) return;
      width = host.clientWidth;
      Plotly.Plots.resize(canvas);
    }).observe(host);
  }

  // The picture's own button: a tap or click on the picture does the same.
  function offer(host) {
    const row = document.createElement("p");
    row.className = "lab-explore";
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Explore" });
    button.title = "Zoom, pan and read values: fetches Plotly, 1.5 MB, once";
    const said = document.createElement("span");
    said.setAttribute("role", "status");
    row.append(button, said);
    host.append(row);
    const begin = async () => {
      if (host.dataset.asked) return;
      host.dataset.asked = "yes";
      said.textContent = "Fetching …";
      try {
        await fetchPlotly();
        draw(host);
        const focused = row.contains(document.activeElement);
        row.remove();
        host.labCanvas.tabIndex = -1;
        if (focused) host.labCanvas.focus({ preventScroll: true });
      } catch {
        delete host.dataset.asked;
        said.textContent = "Plotly could not be fetched; the picture stays.";
      }
    };
    button.addEventListener("click", begin);
    host.querySelectorAll(".lab-still").forEach((picture) => picture.addEventListener("click", begin));
  }

  const hosts = [...document.querySelectorAll("div.lab-figure")];
  hosts.forEach(offer);
  const drawn = () => hosts.filter((host) => host.labCanvas);
  new MutationObserver(() => drawn().forEach((host) => {
    Plotly.relayout(host.labCanvas, { template: skin(host.labColors) });
    whiskers(host.labCanvas.data).forEach(({ index, key }) => {
      Plotly.restyle(host.labCanvas, { [`${key}.color`]: token("--lab-figure-ink") }, [index]);
    });
  })).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();
