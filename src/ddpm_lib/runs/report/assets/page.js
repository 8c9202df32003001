"use strict";
// Draws the curves, moves the slider, reloads while the run lives. Reads the element run-data only.
(() => {
  const data = JSON.parse(document.getElementById("run-data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (query, within = document) => Array.from(within.querySelectorAll(query));
  const key = `ddpm-report:${location.pathname}`;
  const kept = readKept();
  const view = {
    logY: true, logX: false, smoothing: 0, zoom: null, hidden: {}, grid: null, reload: true, ...kept,
  };

  function readKept() {
    try {
      return JSON.parse(sessionStorage.getItem(key)) || {};
    } catch {
      return {}; // storage is closed, or holds something else: the page begins anew
    }
  }

  function keep() {
    const open = all("details").map((one) => one.open);
    try {
      sessionStorage.setItem(key, JSON.stringify({ ...view, open, scroll: window.scrollY }));
    } catch {
      // without storage a reload begins at the top
    }
  }

  const style = () => getComputedStyle(document.documentElement);
  const colour = (k) => style().getPropertyValue(`--c${k % 8}`).trim();

  function words(value) {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    if (size > 0 && size < 1e-4) return value.toExponential(2);
    return String(+value.toPrecision(4));
  }

  // ---- curves ----

  let plots = [];
  let moving = false;
  const charts = new Map(data.charts.map((chart) => [chart.name, chart]));
  const ends = stepsOf(data.charts);

  function stepsOf(every) {
    let low = Infinity, high = -Infinity;
    for (const chart of every) {
      for (const { x } of chart.curves) {
        low = Math.min(low, x[0]);
        high = Math.max(high, x[x.length - 1]);
      }
    }
    if (low === Infinity) return [0, 1];
    return low === high ? [low - 1, high + 1] : [low, high];
  }

  const range = () => view.zoom || (view.logX ? [Math.max(1, ends[0]), Math.max(2, ends[1])] : ends);

  function smoothed(curve) {
    if (!curve.smooth || !view.smoothing) return curve.y;
    const source = curve.mean || curve.y;
    let sum = 0, weight = 0;
    return source.map((y) => {
      sum = view.smoothing * sum + (1 - view.smoothing) * y;
      weight = view.smoothing * weight + (1 - view.smoothing);
      return sum / weight;
    });
  }

  function tableOf(chart, log) {
    const positive = (values) => (log ? values.map((y) => (y > 0 ? y : null)) : values);
    const tables = chart.curves.map((curve) => {
      const from = view.logX ? curve.x.findIndex((x) => x > 0) : 0;
      const x = from < 0 ? [] : curve.x.slice(from);
      const y = from < 0 ? [] : smoothed(curve).slice(from);
      if (!curve.error) return [x, positive(y)];
      const error = curve.error.slice(from);
      const low = y.map((v, k) => (log ? Math.max(v - error[k], v / 10) : v - error[k]));
      return [x, positive(y), positive(low), positive(y.map((v, k) => v + error[k]))];
    });
    return uPlot.join(tables);
  }

  function seriesOf(chart) {
    const series = [{ label: "step", value: (_, v) => (v == null ? "–" : v.toLocaleString("en")) }];
    const bands = [];
    for (const curve of chart.curves) {
      const stroke = colour(curve.colour);
      const show = !(view.hidden[chart.name] || []).includes(curve.label);
      const points = curve.x.length < 30 ? { show: true, size: 5, fill: stroke } : { show: false };
      const soft = curve.smooth && view.smoothing ? " (smoothed)" : "";
      series.push({
        label: curve.label + soft, stroke, show, width: 1.7, points, spanGaps: true,
        dash: curve.dash ? [6, 4] : undefined, value: (u, v, s, k) => reading(u, v, s, k, curve),
      });
      if (!curve.error) continue;
      const at = series.length;
      const edge = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true, show };
      series.push({ ...edge, label: "low", edge: true }, { ...edge, label: "high", edge: true });
      bands.push({ series: [at + 1, at], fill: `color-mix(in srgb, ${stroke} 18%, transparent)` });
    }
    return [series, bands];
  }

  function reading(u, value, at, k, curve) {
    if (value == null || k == null) return words(value);
    const high = curve.error ? u.data[at + 2][k] : null;
    return high == null ? words(value) : `${words(value)} ± ${words(high - value)}`;
  }

  // A row may hold values of some lines only: the marker reads the nearest one of each.
  function nearestIndex(u, at, hovered) {
    const ys = u.data[at];
    if (at === 0 || ys[hovered] != null) return hovered;
    const xs = u.data[0];
    let low = hovered, high = hovered;
    while (low >= 0 && ys[low] == null) low -= 1;
    while (high < ys.length && ys[high] == null) high += 1;
    if (low < 0 && high >= ys.length) return hovered;
    if (low < 0) return high;
    if (high >= ys.length) return low;
    return xs[hovered] - xs[low] <= xs[high] - xs[hovered] ? low : high;
  }

  function drawMarks(chart) {
    return (u) => {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      ctx.strokeStyle = ctx.fillStyle = style().getPropertyValue("--soft");
      ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textBaseline = "top";
      ctx.textAlign = "left";
      for (const level of chart.levels) {
        const y = Math.round(u.valToPos(level.y, "y", true));
        line(ctx, bbox.left, y, bbox.left + bbox.width, y);
        if (level.label !== "0") ctx.fillText(level.label, bbox.left + 6 * devicePixelRatio, y + 3);
      }
      for (const mark of chart.marks) {
        const x = Math.round(u.valToPos(mark.x, "x", true));
        line(ctx, x, bbox.top, x, bbox.top + bbox.height);
        const right = x > bbox.left + bbox.width * 0.8;
        ctx.textAlign = right ? "right" : "left";
        ctx.fillText(mark.label, x + (right ? -4 : 4) * devicePixelRatio, bbox.top + 3);
      }
      ctx.restore();
    };
  }

  function line(ctx, x0, y0, x1, y1) {
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
  }

  function yRange(chart, log) {
    const levels = chart.levels.map((level) => level.y);
    return (u, low, high) => {
      if (low == null) return [log ? 0.1 : 0, 1];
      if (log) {
        const room = Math.max(1.08, Math.pow(high / low, 0.06));
        return [low / room, high * room];
      }
      const [bottom, top] = [Math.min(low, ...levels), Math.max(high, ...levels)];
      const room = (top - bottom || Math.abs(top) || 1) * 0.06;
      return [bottom === 0 ? 0 : bottom - room, top + room];
    };
  }

  // Powers of ten and what lies between them: uPlot's own choice names too few in a short range.
  function logSplits(u, axis, low, high) {
    const found = [];
    const steps = high / low < 30 ? [1, 1.5, 2, 3, 4, 5, 7] : high / low < 300 ? [1, 2, 5] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const step of steps) {
        const value = step * 10 ** power;
        if (value >= low && value <= high) found.push(+value.toPrecision(3));
      }
    }
    return found;
  }

  function draw(box) {
    const chart = charts.get(box.dataset.chart);
    const positive = chart.curves.every((curve) => curve.y.some((y) => y > 0));
    const log = chart.log && view.logY && positive;
    const [series, bands] = seriesOf(chart);
    const soft = style().getPropertyValue("--soft"), grid = style().getPropertyValue("--grid");
    const axis = { stroke: soft, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
    const named = { ...axis, values: (_, splits) => splits.map((v) => (v == null ? "" : words(v))) };
    const logged = { splits: logSplits, filter: (_, splits) => splits };
    const wide = box.parentElement.classList.contains("wide");
    const options = {
      width: Math.max(200, box.clientWidth), height: wide ? 320 : 230, series, bands,
      scales: {
        x: { time: false, distr: view.logX ? 3 : 1, range: (u, low, high) => [low, high] },
        y: { distr: log ? 3 : 1, range: yRange(chart, log) },
      },
      axes: [
        { ...named, ...(view.logX ? logged : {}) },
        { ...named, size: 62, ...(log ? logged : {}) },
      ],
      cursor: { sync: { key: "steps" }, dataIdx: nearestIndex, drag: { x: true, y: false } },
      legend: { markers: { width: 2 } },
      hooks: {
        draw: [drawMarks(chart)],
        setScale: [(u, name) => name === "x" && !moving && zoomed(u)],
        setSeries: [(u, at) => at != null && at > 0 && hideOthers(u, chart, at)],
      },
    };
    const plot = new uPlot(options, tableOf(chart, log), box);
    plot.chart = chart;
    arrangeLegend(plot, series);
    return plot;
  }

  function arrangeLegend(plot, series) {
    all(".u-series", plot.root).forEach((row, at) => {
      if (series[at].edge) row.remove();
      if (at === 0) return;
      const head = row.querySelector("th");
      if (!head || series[at].edge) return;
      head.tabIndex = 0;
      head.setAttribute("role", "button");
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          head.click();
        }
      });
    });
  }

  function hideOthers(u, chart, at) {
    if (moving || u.series[at].edge) return;
    moving = true;
    const next = u.series[at + 1];
    if (next && next.edge) {
      u.setSeries(at + 1, { show: u.series[at].show });
      u.setSeries(at + 2, { show: u.series[at].show });
    }
    moving = false;
    const lines = u.series.filter((one, k) => k > 0 && !one.edge);
    view.hidden[chart.name] = chart.curves.filter((_, k) => !lines[k].show).map((one) => one.label);
  }

  function setRange([min, max]) {
    moving = true;
    for (const plot of plots) plot.setScale("x", { min, max });
    moving = false;
  }

  function zoomed(u) {
    const { min, max } = u.scales.x;
    if (min == null || (min === range()[0] && max === range()[1])) return;
    const whole = min <= ends[0] && max >= ends[1];
    view.zoom = whole ? null : [min, max];
    setRange(range());
  }

  function wholeRange() {
    view.zoom = null;
    setRange(range());
  }

  function drawAll() {
    moving = true;
    for (const plot of plots) plot.destroy();
    plots = all(".plot").map(draw);
    moving = false;
    setRange(range());
    for (const one of all(".key")) one.style.background = colour(Number(one.dataset.colour));
  }

  function zoomBy(factor, plot) {
    const [low, high] = range();
    const at = plot.cursor.left > 0 ? plot.posToVal(plot.cursor.left, "x") : (low + high) / 2;
    const next = [at - (at - low) * factor, at + (high - at) * factor];
    const inside = [Math.max(ends[0], next[0]), Math.min(ends[1], next[1])];
    if (inside[1] - inside[0] < 1e-6 * (ends[1] - ends[0])) return;
    view.zoom = inside[0] <= ends[0] && inside[1] >= ends[1] ? null : inside;
    setRange(range());
  }

  function moveCursor(plot, where) {
    const xs = plot.data[0];
    const [low, high] = range();
    const inside = xs.map((x, k) => [x, k]).filter(([x]) => x >= low && x <= high).map(([, k]) => k);
    if (!inside.length) return;
    const now = inside.indexOf(plot.cursor.idx);
    const next = { first: 0, last: inside.length - 1, left: now < 0 ? inside.length - 1 : now - 1,
      right: now < 0 ? 0 : now + 1 }[where];
    const k = inside[Math.min(inside.length - 1, Math.max(0, next))];
    plot.setCursor({ left: plot.valToPos(xs[k], "x"), top: plot.over.clientHeight / 2 }, true);
    tell(plot);
  }

  function tell(plot) {
    const rows = all(".u-legend .u-series", plot.root).map((row) => {
      const [name, value] = [row.querySelector("th"), row.querySelector("td")];
      return `${name.textContent} ${value ? value.textContent : ""}`;
    });
    byId("plot-reading").textContent = `${plot.chart.title}: ${rows.join("; ")}`;
  }

  const strokes = {
    ArrowLeft: (plot) => moveCursor(plot, "left"), ArrowRight: (plot) => moveCursor(plot, "right"),
    Home: (plot) => moveCursor(plot, "first"), End: (plot) => moveCursor(plot, "last"),
    "+": (plot) => zoomBy(0.5, plot), "=": (plot) => zoomBy(0.5, plot), "-": (plot) => zoomBy(2, plot),
    0: wholeRange, Escape: wholeRange,
  };

  function handleCurves() {
    const [logY, logX, smoothing] = [byId("log-y"), byId("log-x"), byId("smoothing")];
    if (!logY) return;
    logY.checked = view.logY;
    logX.checked = view.logX;
    smoothing.value = view.smoothing;
    const show = () => { byId("smoothing-value").textContent = Number(smoothing.value).toFixed(2); };
    show();
    logY.addEventListener("change", () => { view.logY = logY.checked; drawAll(); });
    logX.addEventListener("change", () => { view.logX = logX.checked; view.zoom = null; drawAll(); });
    smoothing.addEventListener("input", () => {
      view.smoothing = Number(smoothing.value);
      show();
      drawAll();
    });
    byId("zoom-out").addEventListener("click", wholeRange);
    for (const box of all(".plot")) {
      box.addEventListener("keydown", (event) => {
        const plot = plots.find((one) => one.root.parentElement === box);
        const act = strokes[event.key];
        if (!act || !plot || event.target !== box || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        act(plot);
      });
      box.addEventListener("dblclick", wholeRange);
    }
    drawAll();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      for (const plot of plots) {
        const box = plot.root.parentElement;
        plot.setSize({ width: Math.max(200, box.clientWidth), height: plot.height });
      }
    });
  }

  // ---- grids ----

  function handleGrids() {
    const slider = byId("grid");
    if (!slider) return;
    const groups = all(".grids");
    const found = new Set(all(".grids figure").map((one) => Number(one.dataset.step)));
    const steps = Array.from(found).sort((a, b) => a - b);
    const show = () => {
      const step = steps[Number(slider.value)];
      for (const group of groups) {
        const figures = all("figure", group);
        const upTo = figures.filter((one) => Number(one.dataset.step) <= step);
        for (const one of figures) one.classList.toggle("shown", one === upTo[upTo.length - 1]);
      }
      byId("grid-step").textContent = step.toLocaleString("en");
      slider.setAttribute("aria-valuetext", `step ${step}`);
      view.grid = Number(slider.value) === steps.length - 1 ? null : step; // null: the newest, always
    };
    const at = steps.indexOf(view.grid);
    slider.value = at < 0 ? steps.length - 1 : at;
    slider.addEventListener("input", show);
    handlePlay(slider, steps.length, show);
    show();
  }

  function handlePlay(slider, count, show) {
    const play = byId("play");
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "play";
      play.setAttribute("aria-pressed", "false");
    };
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) >= count - 1) slider.value = 0;
      show();
      play.textContent = "stop";
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (Number(slider.value) >= count - 1) stop();
      }, 700);
      return undefined;
    });
  }

  // ---- commands to copy ----

  function handleCopy() {
    for (const button of all("[data-copy]")) {
      button.hidden = false;
      button.addEventListener("click", async () => {
        const code = button.parentElement.querySelector("code");
        try {
          await navigator.clipboard.writeText(code.textContent);
          button.textContent = "copied";
        } catch {
          getSelection().selectAllChildren(code); // not allowed to: it is marked, Ctrl-C takes it
          button.textContent = "marked";
        }
      });
    }
  }

  // ---- reloading while the run lives ----

  const EVERY = 10000, STALE = 1800000;
  let touched = 0;

  function handleReload() {
    const place = byId("reload");
    if (!data.live || !place) return;
    const age = Date.now() - Date.parse(data.written);
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.id = "live";
    box.checked = view.reload;
    box.addEventListener("change", () => { view.reload = box.checked; });
    label.append(box, " reload while it trains");
    place.append("· ", label);
    if (age > STALE) {
      const note = document.createElement("span");
      note.className = "stale";
      note.textContent = ` · nothing new for ${Math.round(age / 60000)} minutes: \`ddpm status\` tells whether it still trains`;
      place.append(note);
    }
    for (const kind of ["pointerdown", "keydown", "input"]) {
      document.addEventListener(kind, () => { touched = Date.now(); }, true);
    }
    setInterval(() => {
      const busy = Date.now() - touched < 4000 || document.hidden || !getSelection().isCollapsed;
      if (!view.reload || busy) return;
      keep();
      location.reload();
    }, data.reload_ms || EVERY);
  }

  history.scrollRestoration = "manual";
  window.addEventListener("pagehide", keep);
  handleCurves();
  handleGrids();
  handleCopy();
  handleReload();
  all("details").forEach((one, k) => { one.open = Boolean((kept.open || [])[k]); });
  if (kept.scroll && !location.hash) window.scrollTo(0, kept.scroll);
})();
