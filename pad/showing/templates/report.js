"use strict";
/* The report's own script. Images come sorted by score, the highest first, and are named by that rank.
   Text from outside only ever enters the page as text nodes and attributes, never as markup. */
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { paths, scores, calibration, labels, kinds, kind } = data;
  const count = scores.length;

  // ---- small helpers ---------------------------------------------------------------------------------
  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const number = (x) => (Number.isFinite(x) ? String(+x.toPrecision(4)) : "none");
  const percent = (x) => `${+(100 * x).toPrecision(x < 0.0995 ? 2 : 3)} %`;
  /* `x` > 0 with two digits, never less than it is. */
  const roundUp = (x) => {
    const step = 10 ** (Math.floor(Math.log10(x)) - 1);
    return +(Math.ceil(x / step - 1e-9) * step).toPrecision(2);
  };
  const fileName = (path) => path.split(/[\\/]/).pop() || path;
  const range = (n) => Array.from({ length: n }, (_, i) => i);

  /* How many of `sorted` (ascending) are at least `x`. */
  function atLeast(sorted, x) {
    let low = 0, high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] >= x) high = middle; else low = middle + 1;
    }
    return sorted.length - low;
  }

  // ---- thumbnails: blocks of base64 lines, split when first needed --------------------------------------
  const blockNodes = document.getElementsByClassName("thumbnails");
  const blocks = [];
  const large = new Map($("large").textContent.split("\n").map((line, i) => [i, line]).filter(([, line]) => line));
  function thumbnail(i, best) {
    if (best && large.has(i)) return data.mime + large.get(i);
    const block = Math.floor(i / data.per_block);
    if (!blockNodes[block]) return "";
    blocks[block] ||= blockNodes[block].textContent.split("\n");
    const line = blocks[block][i % data.per_block];
    return line ? data.mime + line : "";
  }
  function picture(i, attributes, best) {
    const image = el("img", { draggable: "false", ...attributes });
    const source = thumbnail(i, best);
    if (source) image.src = source;
    return image;
  }

  // ---- state -----------------------------------------------------------------------------------------------
  const start = data.threshold === null ? Infinity : data.threshold;
  const ascending = [...scores].reverse();
  const calibrated = calibration.length > 0;
  const labelled = labels !== null;
  const groups = new Map(); // name of a label -> { scores ascending, anomalous }
  if (labelled)
    for (let i = count - 1; i >= 0; i--) {
      const name = labels[i] < 0 ? null : kinds[kind[i]];
      if (name === null) continue;
      if (!groups.has(name)) groups.set(name, { scores: [], anomalous: labels[i] === 1 });
      groups.get(name).scores.push(scores[i]);
    }
  let threshold = start;
  let wanted = null; // the false-alarm rate that was asked for, if the threshold comes from one
  let chosen = -1; // rank of the chosen image
  let shown = range(count); // ranks in the gallery, in its order
  let brush = null; // chosen region of the map: [x0, y0, x1, y1] in 0..1

  const flagged = (i) => scores[i] >= threshold;
  const lowestRate = 1 / (calibration.length + 1); // that can be held
  const pValue = (score) => (1 + atLeast(calibration, score)) / (calibration.length + 1);
  /* The false-alarm rate that this threshold holds on new normal images. */
  const rateAt = (x) => (x === Infinity ? 0 : (1 + atLeast(calibration, x)) / (calibration.length + 1));
  /* The smallest threshold that holds `rate`: just above the m-th largest calibration score. */
  function thresholdAt(rate) {
    const total = calibration.length + 1;
    let m = Math.min(Math.floor(rate * total) + 1, calibration.length);
    while (m > 0 && m / total > rate) m--;
    if (m === 0) return Infinity;
    // Three quarters of the way to the next single-precision number, as the Python side has it.
    const bits = new DataView(new ArrayBuffer(4));
    bits.setFloat32(0, calibration[calibration.length - m]);
    const below = bits.getFloat32(0);
    if (below === 0) return 0.75 * 2 ** -149;
    bits.setInt32(0, bits.getInt32(0) + (below < 0 ? -1 : 1));
    return below + 0.75 * (bits.getFloat32(0) - below);
  }

  // ---- the axis of scores, shared by the histograms and the slider ---------------------------------------------
  /* Three ways to lay scores out: evenly, by their logarithm, or evenly without the few that lie far off, which
     are gathered in the first and the last bar. An axis holds what it does to a score and back, and its ends. */
  const axes = (() => {
    const all = [...calibration, ...ascending].sort((a, b) => a - b);
    if (!all.length) all.push(0, 1);
    const at = (sorted, q) => sorted[Math.floor(q * (sorted.length - 1))];
    const least = all[0], most = all[all.length - 1];
    const make = (low, high, to, from) => {
      const margin = (to(high) - to(low) || Math.abs(to(high)) || 1) * 0.02;
      return { low: to(low) - margin, high: to(high) + margin, to, from, below: low > least, above: high < most };
    };
    const same = (x) => x;
    // What is to stay in view: all but a tenth of the images, almost all of the calibration, and the threshold.
    const parts = [calibration, ascending].filter((part) => part.length);
    const ends = [...parts.map((part) => at(part, 0.05)), at(ascending.length ? ascending : all, 0.9),
      ...(calibrated ? [at(calibration, 0.99)] : []), ...(start === Infinity ? [] : [start])];
    const bottom = Math.min(...ends), top = Math.max(...ends);
    const spread = 0.5 * (top - bottom);
    const found = { linear: make(least, most, same, same) };
    if (least > 0) found.logarithmic = make(least, most, Math.log, Math.exp);
    if (spread > 0 && (most > top + spread || least < bottom - spread))
      found.zoomed = make(Math.max(least, bottom - spread), Math.min(most, top + spread), same, same);
    return { found, body: (axis) => (axis.to(top) - axis.to(bottom)) / (axis.high - axis.low) };
  })();
  const AXES = { linear: "linear", logarithmic: "logarithmic", zoomed: "without the extremes" };
  /* Linear, unless a few scores would squash the rest. */
  let axis = axes.found[["linear", "logarithmic"].find((name) => axes.found[name] && axes.body(axes.found[name]) > 0.2) ||
    (axes.found.zoomed ? "zoomed" : "linear")];
  const share = (score) => Math.min(1, Math.max(0, (axis.to(score) - axis.low) / (axis.high - axis.low)));
  const scoreAt = (part) => axis.from(axis.low + part * (axis.high - axis.low));

  function bins(values, n) {
    const heights = new Array(n).fill(0);
    for (const v of values) heights[Math.min(n - 1, Math.floor(share(v) * n))]++;
    return heights.map((h) => h / Math.max(1, values.length));
  }

  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) || rough;
    const first = Math.ceil(low / step);
    return range(Math.max(0, Math.floor(high / step) - first + 1)).map((i) => +((first + i) * step).toPrecision(10));
  }
  function scoreTicks(wanted) {
    const low = scoreAt(0), high = scoreAt(1);
    if (axis.to !== Math.log || high < 4 * low) return ticks(low, high, wanted);
    const powers = range(Math.floor(Math.log10(high)) - Math.floor(Math.log10(low)) + 1).map((i) => i + Math.floor(Math.log10(low)));
    const within = (digits) => powers.flatMap((k) => digits.map((d) => +(d * 10 ** k).toPrecision(3))).filter((v) => v >= low && v <= high);
    const all = [within([1, 2, 5]), within([1, 3]), within([1])].find((some) => some.length <= wanted) || within([1]);
    return all.filter((_, i) => i % Math.ceil(all.length / wanted) === 0);
  }

  // ---- histogram -------------------------------------------------------------------------------------------------
  class Histogram {
    constructor(host, height, n, compact) {
      Object.assign(this, { host, height, n, compact });
      this.count();
    }
    count() {
      this.calibration = bins(calibration, this.n);
      this.fresh = bins(scores, this.n);
      this.top = Math.max(1e-9, ...this.calibration, ...this.fresh);
    }
    draw() {
      const width = Math.max(200, this.host.clientWidth || 800), height = this.height;
      const m = this.compact ? { l: 4, r: 4, t: 14, b: 18 } : { l: 44, r: 12, t: 20, b: 22 };
      const w = width - m.l - m.r, h = height - m.t - m.b;
      const x = (score) => m.l + share(score) * w;
      const y = (v) => m.t + h - (v / this.top) * h;
      const label = `Histogram of scores: ${count} images, ${calibration.length} calibration images`;
      const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
      if (!this.compact)
        for (const v of ticks(0, this.top, 3))
          root.append(svg("line", { x1: m.l, x2: width - m.r, y1: y(v), y2: y(v), class: "axis" }),
            svg("text", { x: m.l - 6, y: y(v) + 4, "text-anchor": "end" }, `${+(100 * v).toPrecision(3)}%`));
      const bar = w / this.n, border = share(threshold) * this.n;
      // The calibration scores: an area behind the bars, and its outline in front of them.
      const points = range(this.n).flatMap((i) => [[m.l + i * bar, y(this.calibration[i])], [m.l + (i + 1) * bar, y(this.calibration[i])]]);
      const outline = [[m.l, m.t + h], ...points, [m.l + w, m.t + h]].map((p) => p.join(",")).join(" ");
      if (calibrated) root.append(svg("polygon", { points: outline, class: "f-cal" }));
      for (let i = 0; i < this.n; i++) {
        const left = m.l + i * bar;
        const rect = (at, part, v, name) => v > 0 && part > 0 &&
          root.append(svg("rect", { x: at, y: y(v), width: Math.max(0, part), height: m.t + h - y(v), class: name }));
        const gap = bar > 5 ? 1 : 0, normal = Math.min(1, Math.max(0, border - i));
        const isLast = i === this.n - 1 && threshold === Infinity;
        const part = isLast ? 1 : normal;
        rect(left, part * (bar - gap), this.fresh[i], "f-normal");
        rect(left + part * (bar - gap), (1 - part) * (bar - gap), this.fresh[i], "f-anomaly");
      }
      if (calibrated) root.append(svg("polyline", { points: outline, class: "s-cal" }));
      root.append(svg("line", { x1: m.l, x2: m.l + w, y1: m.t + h, y2: m.t + h, class: "axis" }));
      for (const v of scoreTicks(this.compact ? 4 : Math.max(3, Math.min(10, Math.floor(w / 64)))))
        root.append(svg("text", { x: x(v), y: height - 5, "text-anchor": "middle" }, number(v)));
      const end = (at, bin, anchor, text) => root.append(svg("text",
        { x: at, y: m.t + h - 6 - (Math.max(this.fresh[bin], this.calibration[bin]) / this.top) * h, "text-anchor": anchor }, text));
      if (axis.above && !this.compact) end(m.l + w, this.n - 1, "end", "and above");
      if (axis.below && !this.compact) end(m.l, 0, "start", "and below");
      if (threshold !== Infinity) {
        root.append(svg("line", { x1: x(threshold), x2: x(threshold), y1: m.t - 4, y2: m.t + h, class: "s-rule" }));
        if (!this.compact)
          root.append(svg("text", { x: x(threshold) + (share(threshold) > 0.8 ? -6 : 6), y: m.t + 6, class: "strong",
            "text-anchor": share(threshold) > 0.8 ? "end" : "start" }, `threshold ${number(threshold)}`));
      }
      if (chosen >= 0) {
        const at = x(scores[chosen]);
        root.append(svg("line", { x1: at, x2: at, y1: m.t, y2: m.t + h, class: "s-chosen" }),
          svg("path", { d: `M${at - 6},${m.t - 9}h12l-6,9z`, class: "f-chosen" }));
      }
      this.host.replaceChildren(root);
    }
  }
  const fine = Math.min(80, Math.max(16, Math.round(2.5 * Math.sqrt(count + calibration.length))));
  const histogram = new Histogram($("histogram"), 250, fine, false);
  const mini = new Histogram($("mini"), 96, Math.ceil(fine / 2), true);
  $("histogram-legend").replaceChildren(...[...(calibrated ? [["f-cal", "calibration (normal)"]] : []), ["f-normal", "not flagged"],
    ["f-anomaly", "flagged"], ["f-chosen", "chosen image"]].map(([name, text]) =>
    el("span", {}, svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, class: name })), text)));
  for (const [name, text] of Object.entries(AXES))
    if (axes.found[name]) $("scale").append(el("option", { value: name }, text));
  $("scale-label").hidden = $("scale").length < 2;
  $("scale").value = Object.keys(axes.found).find((name) => axes.found[name] === axis);
  $("scale").addEventListener("change", () => {
    axis = axes.found[$("scale").value];
    for (const drawing of [histogram, mini]) { drawing.count(); drawing.draw(); }
    placeSlider();
  });

  // ---- counts ------------------------------------------------------------------------------------------------------
  const totals = { normal: [], anomalous: [] };
  for (const group of groups.values()) totals[group.anomalous ? "anomalous" : "normal"].push(group.scores);
  const sum = (lists, at) => lists.reduce((n, list) => n + (at === undefined ? list.length : atLeast(list, at)), 0);
  const interval = (of) => (of ? `95 %: ${of.low.toFixed(3)} to ${of.high.toFixed(3)}` : "");

  function tiles() {
    const hits = atLeast(ascending, threshold);
    const list = [["flagged", String(hits), count ? `${percent(hits / count)} of ${count} images` : "", "hot"]];
    list.push(["threshold", number(threshold), threshold === start && data.fdr ? `false discovery rate ${percent(data.fdr)}` : ""]);
    if (calibrated)
      list.push(threshold === Infinity
        ? ["false-alarm rate", "0 %", `${calibration.length} calibration images can hold ${roundUp(100 * lowestRate)} % and more`]
        : ["false-alarm rate", `≤ ${percent(rateAt(threshold))}`, `held by ${calibration.length} calibration images`]);
    if (labelled && sum(totals.normal)) {
      const normal = sum(totals.normal), false_ = sum(totals.normal, threshold);
      list.push(["false alarms", String(false_), `${percent(false_ / normal)} of ${normal} labelled normal`]);
    }
    if (labelled && sum(totals.anomalous)) {
      const all = sum(totals.anomalous), found = sum(totals.anomalous, threshold);
      list.push(["anomalies found", String(found), `${percent(found / all)} of ${all} labelled anomalous`]);
    }
    if (data.metrics) list.push(["ROC AUC", data.metrics.roc_auc.value.toFixed(3), interval(data.metrics.roc_auc)]);
    if (data.unreadable) list.push(["unreadable", String(data.unreadable), "listed below"]);
    $("tiles").replaceChildren(...list.map(([name, value, more, hot]) =>
      el("div", { class: hot ? "tile hot" : "tile", "data-name": name }, el("span", {}, name), el("b", {}, value), el("small", {}, more))));
    const sentence = threshold === Infinity ? whyNothing()
      : `${hits} of ${count} images score at least ${number(threshold)}.` +
        (calibrated ? ` Of new normal images, at most ${percent(rateAt(threshold))} would on average` +
          (data.confidence && threshold === start ? `, and at most ${percent(data.fpr)} with a probability of ${percent(data.confidence)}.` : ".") : "");
    $("sentence").textContent = sentence;
    $("slider").setAttribute("aria-valuetext", sentence);
  }

  /* Why nothing is flagged, as the command line says it. */
  function whyNothing() {
    if (!calibrated) return "Nothing is flagged: the model has no calibration. A threshold can be set by hand.";
    if (wanted === data.fpr && data.note) return `${data.note}.`;
    if (!wanted || wanted >= lowestRate) return "Nothing is flagged.";
    const asked = `${+(100 * wanted).toPrecision(3)} %`;
    return `${calibration.length} calibration images cannot hold a false-alarm rate of ${asked}, so nothing is flagged; the lowest ` +
      `they can hold is ${roundUp(100 * lowestRate)} %. For ${asked}, calibrate on at least ${Math.ceil(1 / wanted - 1e-9) - 1} normal images.`;
  }

  // ---- threshold -----------------------------------------------------------------------------------------------------
  const placeSlider = () => { $("slider").value = String(threshold === Infinity ? 1000 : Math.round(1000 * share(threshold))); };
  function setThreshold(value, from) {
    threshold = value;
    wanted = from === "rate" ? +$("rate").value / 100 : from === undefined && !data.fdr ? data.fpr : null;
    if (from !== "slider") placeSlider();
    if (from !== "threshold") $("threshold").value = threshold === Infinity ? "" : String(+threshold.toPrecision(6));
    const asked = threshold === start && !data.fdr && !data.confidence; // then the rate that was asked for, which may not be reached
    if (from !== "rate" && calibrated) $("rate").value = String(+(100 * (asked ? data.fpr : rateAt(threshold))).toPrecision(3));
    tiles();
    histogram.draw();
    mini.draw();
    curves();
    drawScatter();
    if ($("show").value === "all") { render(true); describe(); } else filter();
  }
  $("slider").addEventListener("input", () => {
    const at = +$("slider").value;
    setThreshold(at >= 1000 ? Infinity : scoreAt(at / 1000), "slider");
  });
  $("threshold").addEventListener("input", () => {
    const value = $("threshold").value === "" ? Infinity : +$("threshold").value;
    if (!Number.isNaN(value)) setThreshold(value, "threshold");
  });
  $("rate").addEventListener("input", () => setThreshold(thresholdAt(+$("rate").value / 100), "rate"));
  $("reset").addEventListener("click", () => setThreshold(start));
  $("rate-label").hidden = !calibrated;

  // ---- against the labels ----------------------------------------------------------------------------------------------
  const curve = (() => {
    const p = sum(totals.anomalous), n = sum(totals.normal);
    if (!p || !n) return null;
    const points = [{ tpr: 0, fpr: 0, precision: 1 }];
    let found = 0, false_ = 0;
    for (let i = 0; i < count; i++) {
      if (labels[i] === 1) found++; else if (labels[i] === 0) false_++;
      if (i + 1 < count && scores[i + 1] === scores[i]) continue;
      if (found + false_) points.push({ tpr: found / p, fpr: false_ / n, precision: found / (found + false_) });
    }
    points[0].precision = points[1].precision;
    const every = Math.max(1, Math.floor(points.length / 600));
    return { p, n, points: points.filter((_, i) => i % every === 0 || i === points.length - 1) };
  })();

  function drawCurve(host, title, horizontal, vertical, x, y, now, diagonal) {
    const size = 250, m = { l: 38, r: 8, t: 22, b: 36 }, w = size - m.l - m.r, h = size - m.t - m.b;
    const px = (v) => (m.l + v * w).toFixed(1), py = (v) => (m.t + (1 - v) * h).toFixed(1);
    const root = svg("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": title });
    for (const v of [0, 0.5, 1])
      root.append(svg("line", { x1: px(0), x2: px(1), y1: py(v), y2: py(v), class: "axis" }),
        svg("line", { x1: px(v), x2: px(v), y1: py(0), y2: py(1), class: "axis" }),
        svg("text", { x: m.l - 5, y: +py(v) + 4, "text-anchor": "end" }, String(v)),
        svg("text", { x: px(v), y: size - m.b + 14, "text-anchor": "middle" }, String(v)));
    if (diagonal) root.append(svg("line", { x1: px(0), y1: py(0), x2: px(1), y2: py(1), class: "s-diagonal" }));
    root.append(svg("text", { x: m.l, y: 13, class: "strong" }, title),
      svg("text", { x: m.l + w / 2, y: size - 5, "text-anchor": "middle" }, horizontal),
      svg("text", { x: 10, y: m.t + h / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${m.t + h / 2})` }, vertical),
      svg("polyline", { points: curve.points.map((p) => `${px(x(p))},${py(y(p))}`).join(" "), class: "s-line" }));
    if (now) root.append(svg("circle", { cx: px(x(now)), cy: py(y(now)), r: 5.5, class: "f-anomaly" }));
    host.replaceChildren(root);
  }

  function curves() {
    if (!labelled) return;
    if (curve) {
      const found = sum(totals.anomalous, threshold), false_ = sum(totals.normal, threshold);
      const now = found + false_ ? { tpr: found / curve.p, fpr: false_ / curve.n, precision: found / (found + false_) } : null;
      const of = data.metrics;
      drawCurve($("roc"), `ROC, area ${of ? of.roc_auc.value.toFixed(3) : ""}`, "false-alarm rate", "anomalies found", (p) => p.fpr, (p) => p.tpr, now, true);
      drawCurve($("pr"), `Precision–recall, average ${of ? of.average_precision.value.toFixed(3) : ""}`, "anomalies found", "precision", (p) => p.tpr, (p) => p.precision, now, false);
    }
    const head = el("tr", {}, ...["label", "images", "flagged", "share", "ROC AUC", "FPR95"].map((t, i) => el("th", { scope: "col", class: i ? "n" : "" }, t)));
    const rows = [...groups].sort((a, b) => a[1].anomalous - b[1].anomalous || (a[0] < b[0] ? -1 : 1)).map(([name, group]) => {
      const hits = atLeast(group.scores, threshold), of = (data.kind_metrics || {})[name] || {};
      const cells = [String(group.scores.length), String(hits), percent(hits / group.scores.length),
        of.roc_auc ? of.roc_auc.value.toFixed(3) : "", of.fpr_at_95_tpr ? of.fpr_at_95_tpr.value.toFixed(3) : ""];
      return el("tr", {}, el("td", { class: "path" }, el("bdi", {}, name), group.anomalous || name === "normal" ? "" : " (normal)"), ...cells.map((c) => el("td", { class: "n" }, c)));
    });
    $("kinds").replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
  }

  // ---- map of latents -------------------------------------------------------------------------------------------------------
  const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8f7ae5", "#b5a642", "#7f7f7f"];
  const canvas = $("scatter");
  let plot = null; // margins and scale of the last drawing
  let dragging = null;
  const colourNames = [...groups.keys()];
  function colourOf(i, normal, anomaly) {
    if ($("colour").value === "verdict") return flagged(i) ? anomaly : normal;
    return PALETTE[Math.min(PALETTE.length - 1, Math.max(0, colourNames.indexOf(kinds[kind[i]])))];
  }
  function drawScatter() {
    if (!data.xy || !canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const c = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const normal = colour("--normal"), anomaly = colour("--anomaly");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.fillStyle = colour("--page");
    c.fillRect(0, 0, width, height);
    plot = { x: (i) => 12 + data.xy[0][i] * (width - 24), y: (i) => height - 22 - data.xy[1][i] * (height - 34),
      u: (px) => (px - 12) / (width - 24), v: (py) => (height - 22 - py) / (height - 34) };
    const radius = count > 3000 ? 2 : count > 500 ? 2.8 : 4;
    c.globalAlpha = count > 3000 ? 0.6 : 0.8;
    for (let i = count - 1; i >= 0; i--) { // the most anomalous on top
      c.fillStyle = colourOf(i, normal, anomaly);
      c.beginPath();
      if ($("colour").value === "verdict" && flagged(i)) { // a diamond: told apart without colour, too
        const r = radius * 1.5, x = plot.x(i), y = plot.y(i);
        c.moveTo(x, y - r); c.lineTo(x + r, y); c.lineTo(x, y + r); c.lineTo(x - r, y); c.closePath();
      } else c.arc(plot.x(i), plot.y(i), radius, 0, 7);
      c.fill();
    }
    c.globalAlpha = 1;
    c.fillStyle = colour("--muted");
    c.font = "12px system-ui, sans-serif";
    c.textAlign = "right";
    c.fillText(data.axes, width - 8, height - 6);
    if (chosen >= 0) {
      c.strokeStyle = colour("--text");
      c.lineWidth = 2.5;
      c.beginPath();
      c.arc(plot.x(chosen), plot.y(chosen), radius + 5, 0, 7);
      c.stroke();
    }
    const box = dragging && dragging.box ? dragging.box : brush;
    if (box) {
      c.strokeStyle = colour("--accent");
      c.setLineDash([5, 3]);
      c.lineWidth = 1.5;
      const x0 = 12 + box[0] * (width - 24), x1 = 12 + box[2] * (width - 24);
      const y0 = height - 22 - box[1] * (height - 34), y1 = height - 22 - box[3] * (height - 34);
      c.strokeRect(x0, y0, x1 - x0, y1 - y0);
      c.setLineDash([]);
    }
    const entries = $("colour").value === "verdict" ? [["not flagged", normal], ["flagged", anomaly]]
      : colourNames.slice(0, PALETTE.length).map((name, i) => [i === PALETTE.length - 1 ? "others" : name, PALETTE[i]]);
    $("scatter-legend").replaceChildren(...entries.map(([name, fillColour]) =>
      el("span", {}, svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("circle", { cx: 5, cy: 5, r: 5, fill: fillColour })), el("bdi", {}, name))));
  }
  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    let best = -1, least = 18 ** 2;
    for (let i = 0; i < count; i++) {
      const d = (plot.x(i) - event.clientX + box.left) ** 2 + (plot.y(i) - event.clientY + box.top) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }
  const inBrush = (i) => !brush || (data.xy[0][i] >= brush[0] && data.xy[0][i] <= brush[2] && data.xy[1][i] >= brush[1] && data.xy[1][i] <= brush[3]);
  function setBrush(box) {
    brush = box;
    $("clear-brush").hidden = !box;
    drawScatter();
    filter();
  }
  if (data.xy) {
    $("latents").hidden = false;
    $("colour-label").hidden = !labelled;
    $("colour").addEventListener("change", drawScatter);
    $("clear-brush").addEventListener("click", () => setBrush(null));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      dragging = { x: event.offsetX, y: event.offsetY, box: null };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (dragging) {
        if (Math.hypot(event.offsetX - dragging.x, event.offsetY - dragging.y) > 5 || dragging.box) {
          const u = [plot.u(dragging.x), plot.u(event.offsetX)], v = [plot.v(dragging.y), plot.v(event.offsetY)];
          dragging.box = [Math.min(...u), Math.min(...v), Math.max(...u), Math.max(...v)];
          $("tip").hidden = true;
          drawScatter();
        }
        return;
      }
      const i = nearest(event), tip = $("tip");
      tip.hidden = i < 0;
      if (i < 0) return;
      const source = thumbnail(i);
      if (source) tip.firstChild.src = source;
      tip.firstChild.hidden = !source;
      tip.lastChild.textContent = `${fileName(paths[i])} · score ${number(scores[i])}`;
      tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 275)}px`;
      tip.style.top = `${event.clientY + 16}px`;
    });
    canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
    canvas.addEventListener("pointerup", (event) => {
      const box = dragging && dragging.box;
      dragging = null;
      if (box) return setBrush(box);
      const i = nearest(event);
      if (i >= 0) choose(i, true);
    });
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way || !count) return;
      event.preventDefault();
      let best = -1, least = Infinity;
      for (let i = 0; i < count && chosen >= 0; i++) {
        const dx = plot.x(i) - plot.x(chosen), dy = plot.y(i) - plot.y(chosen);
        const along = dx * way[0] + dy * way[1], across = Math.abs(dx * way[1] + dy * way[0]);
        if (i !== chosen && along > 0 && along + 2 * across < least) { least = along + 2 * across; best = i; }
      }
      if (best >= 0 || chosen < 0) choose(Math.max(best, 0), true);
    });
  }

  // ---- gallery: only what is in view has nodes ----------------------------------------------------------------------------------
  const list = $("list"), GAP = 10, TEXT = 62;
  const nodes = new Map(); // position -> node
  let columns = 1, cardWidth = 300, rowHeight = 170;

  function filter() {
    const show = $("show").value, wanted = $("kind").value, word = $("search").value.toLowerCase(), sort = $("sort").value;
    const tests = {
      all: () => true, flagged, clear: (i) => !flagged(i),
      false: (i) => flagged(i) && labels[i] === 0, missed: (i) => !flagged(i) && labels[i] === 1,
    };
    shown = range(count).filter((i) => tests[show](i) && inBrush(i) && (!wanted || (labels[i] >= 0 && kinds[kind[i]] === wanted)) &&
      (!word || paths[i].toLowerCase().includes(word)));
    if (sort === "low") shown.reverse();
    if (sort === "name") shown.sort((a, b) => (paths[a] < paths[b] ? -1 : paths[a] > paths[b] ? 1 : a - b));
    if (sort === "input") shown.sort((a, b) => data.row[a] - data.row[b]);
    $("shown").textContent = shown.length === count ? `${count} images` : `${shown.length} of ${count} images`;
    $("empty").hidden = shown.length > 0;
    layout();
  }
  function layout() {
    const width = list.clientWidth;
    columns = Math.max(1, Math.floor((width + GAP) / (290 + GAP)));
    cardWidth = (width - GAP * (columns - 1)) / columns;
    rowHeight = Math.round(cardWidth / 3) + TEXT + GAP;
    list.style.height = `${Math.max(0, Math.ceil(shown.length / columns) * rowHeight - GAP)}px`;
    render(true);
    describe();
  }
  function card(position) {
    const i = shown[position], hit = flagged(i), name = fileName(paths[i]);
    const p = calibrated ? pValue(scores[i]) : null;
    const verdict = hit ? "flagged" : "not flagged", label = labelled && labels[i] >= 0 ? kinds[kind[i]] : "";
    const node = el("div", { class: hit ? "item flagged" : "item", role: "option", id: `item-${position}`, title: paths[i],
      "aria-posinset": position + 1, "aria-setsize": shown.length, "aria-selected": i === chosen,
      "aria-label": `${name}, score ${number(scores[i])}${p === null ? "" : `, p-value ${number(p)}`}, ${verdict}${label ? `, labelled ${label}` : ""}` },
      picture(i, { class: "strip", alt: "" }),
      el("div", { class: "line" }, el("span", { class: "name" }, name), el("bdi", { class: "label" }, label)),
      el("div", { class: "line" }, el("span", { class: "score" }, number(scores[i])), el("span", {}, p === null ? "" : `p ${number(p)}`),
        el("span", { class: hit ? "badge flagged" : "badge" }, verdict)));
    node.dataset.rank = i;
    node.style.width = `${cardWidth}px`;
    node.style.height = `${rowHeight - GAP}px`;
    node.style.left = `${(position % columns) * (cardWidth + GAP)}px`;
    node.style.top = `${Math.floor(position / columns) * rowHeight}px`;
    return node;
  }
  function render(again) {
    if (again) { list.replaceChildren(); nodes.clear(); }
    const top = -list.getBoundingClientRect().top, height = window.innerHeight;
    const first = Math.max(0, Math.floor((top - height / 2) / rowHeight)) * columns;
    const end = Math.min(shown.length, Math.ceil((top + 1.5 * height) / rowHeight) * columns);
    for (const [position, node] of nodes)
      if (position < first || position >= end) { node.remove(); nodes.delete(position); }
    for (let position = first; position < end; position++)
      if (!nodes.has(position)) {
        const node = card(position);
        nodes.set(position, node);
        list.append(node);
      }
    const active = shown.indexOf(chosen);
    if (nodes.has(active)) list.setAttribute("aria-activedescendant", `item-${active}`);
    else list.removeAttribute("aria-activedescendant");
  }

  // ---- the chosen image ---------------------------------------------------------------------------------------------------------------
  function describe() {
    const position = shown.indexOf(chosen);
    for (const id of ["previous", "viewer-previous"]) $(id).disabled = !shown.length || position === 0;
    for (const id of ["next", "viewer-next"]) $(id).disabled = !shown.length || position === shown.length - 1;
    if (chosen < 0) return;
    const i = chosen, hit = flagged(i);
    $("chosen-name").textContent = fileName(paths[i]);
    $("chosen-path").textContent = paths[i];
    $("chosen-verdict").replaceChildren(el("span", { class: hit ? "badge flagged" : "badge" }, hit ? "flagged as anomalous" : "not flagged"));
    const facts = [["score", number(scores[i])]];
    if (calibrated) {
      const below = calibration.length - atLeast(calibration, scores[i]);
      facts.push(["p-value", number(pValue(scores[i]))],
        ["higher than", `${below} of ${calibration.length} calibration images`], ...ofViews(i));
    }
    if (labelled && labels[i] >= 0) facts.push(["label", `${kinds[kind[i]]} (${labels[i] ? "anomalous" : "normal"})`]);
    facts.push(["rank", `${i + 1} of ${count}`]);
    const [width, height] = data.sizes[i];
    if (width) facts.push(["picture", `${width} × ${height} px`], ["the model sees", seen(width, height)]);
    $("facts").replaceChildren(...facts.flatMap(([a, b]) => [el("dt", {}, a), el("dd", {}, b)]));
  }
  /* How unusual the image is in each view by itself; those of the smallest p-value speak. */
  function ofViews(i) {
    const known = Object.entries(data.views || {}).map(([name, p]) => [name, p[i]]).filter(([, p]) => p !== null);
    const least = Math.min(...known.map(([, p]) => p));
    return known.map(([name, p]) => [`by ${name}`, p === least ? `p ${number(p)} · speaks` : `p ${number(p)}`]);
  }
  /* Which part of a picture goes into the model, and as what: pad/images/geometry.py in words. */
  function seen(width, height) {
    const { size, channels, crop, fit } = data.seen;
    let [w, h] = crop === null ? [width, height] : [Math.min(width, crop), Math.min(height, crop)];
    if (fit === "crop") w = h = Math.min(w, h);
    const part = w === width && h === height ? "all of it" : `its centre, ${w} × ${h} px`;
    return `${part}, ${w === h ? "" : "stretched "}as ${size} × ${size} px, ${channels === 1 ? "grey" : "colour"}`;
  }
  /* One of the three pictures in the strip of an image: part 0, 1 or 2. Several lie on each other. */
  function pane(node, i, names) {
    const [first, ...others] = names.map(([part, name]) => picture(i, { alt: name, "data-part": part }, true));
    const fit = () => { if (first.naturalHeight) node.style.setProperty("--ratio", String(first.naturalWidth / 3 / first.naturalHeight)); };
    first.addEventListener("load", fit);
    node.replaceChildren(first, ...others);
    return node;
  }
  const PARTS = ["input", "nearest normal", "anomaly map"];
  for (const bar of document.getElementsByClassName("bar")) {
    const colours = data.bar.map((colour, i) => svg("rect", { x: i, width: 1.05, height: 1, fill: colour }));
    const [low, high] = data.scale ? [number(data.scale.low), number(data.scale.high)] : ["none", "highest"];
    bar.append(el("span", {}, low), svg("svg", { viewBox: `0 0 ${data.bar.length} 1`, preserveAspectRatio: "none", role: "img",
      "aria-label": `Colours of the anomaly map, from ${low} to ${high}` }, ...colours), el("span", {}, high));
    bar.title = data.scale ? "Colour begins where 95 % of the pixels of normal images lie below; it is brightest from where the highest point of 99 % of normal images lies below."
      : "Each map is drawn on its own range: it compares with no other.";
  }
  function openPanel(open) { document.body.classList.toggle("closed", !open); }

  // ---- the chosen image, enlarged: the map over the input, at any opacity ----------------------------------------------
  const viewer = $("viewer");
  function enlarge(i) {
    if (i < 0 || !thumbnail(i)) return;
    const name = fileName(paths[i]);
    $("viewer-name").textContent = name;
    $("viewer-facts").textContent = [flagged(i) ? "flagged" : "not flagged", `score ${number(scores[i])}`,
      ...(calibrated ? [`p-value ${number(pValue(scores[i]))}`] : []), `rank ${i + 1} of ${count}`].join(" · ");
    pane($("viewer-input"), i, [[0, `input of ${name}`], [2, `anomaly map of ${name}`]]);
    pane($("viewer-nearest"), i, [[1, `nearest normal image to ${name}`]]);
    setOpacity();
    const first = !viewer.open;
    if (first) viewer.showModal();
    // Keys must arrive somewhere: not on the page behind, nor on a button that is now switched off.
    if (!viewer.contains(document.activeElement) || document.activeElement.disabled || first) viewer.focus({ preventScroll: true });
  }
  const setOpacity = () => { $("viewer-input").lastChild.style.opacity = String($("opacity").value / 100); };
  $("opacity").addEventListener("input", setOpacity);
  $("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); }); // beside it

  function choose(i, scroll) {
    chosen = i;
    if (scroll) openPanel(true);
    for (const node of nodes.values()) node.setAttribute("aria-selected", String(+node.dataset.rank === i));
    $("panes").replaceChildren(...(thumbnail(i) ? PARTS : []).map((name, part) => {
      const button = el("button", { type: "button", class: "pane", title: "Enlarge" });
      button.addEventListener("click", () => enlarge(chosen));
      return el("figure", {}, pane(button, i, [[part, `${name} of ${fileName(paths[i])}`]]), el("figcaption", {}, name));
    }));
    describe();
    const position = shown.indexOf(i);
    if (scroll && position >= 0) {
      const top = list.getBoundingClientRect().top + Math.floor(position / columns) * rowHeight;
      const bar = getComputedStyle($("toolbar")).position === "sticky" ? $("toolbar").offsetHeight + 8 : 8;
      if (scroll !== "gallery" && (top > window.innerHeight || top < 0)) { /* chosen elsewhere: the gallery stays put */ }
      else if (top < bar) window.scrollBy(0, top - bar);
      else if (top + rowHeight > window.innerHeight) window.scrollBy(0, top + rowHeight - window.innerHeight);
    }
    if (viewer.open) enlarge(i);
    render(false);
    histogram.draw();
    mini.draw();
    drawScatter();
  }
  function step(by) {
    if (!shown.length) return;
    const position = shown.indexOf(chosen);
    choose(shown[Math.min(shown.length - 1, Math.max(0, position < 0 ? 0 : position + by))], "gallery");
  }
  list.addEventListener("click", (event) => {
    const node = event.target.closest(".item");
    if (node) choose(+node.dataset.rank, "gallery");
  });
  list.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = columns * Math.max(1, Math.floor(window.innerHeight / rowHeight) - 1);
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: page, PageUp: -page,
      Home: -count, End: count, Enter: 0, " ": 0 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    step(by);
    if (event.key === "Enter") enlarge(chosen);
  });
  for (const [id, by] of [["previous", -1], ["viewer-previous", -1], ["next", 1], ["viewer-next", 1]])
    $(id).addEventListener("click", () => step(by));
  $("close").addEventListener("click", () => openPanel(false));
  // Left and right lead through the images from wherever these keys have no other meaning.
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("input, select, textarea, pre, .scroll")) return;
    event.preventDefault();
    step(by);
  });
  for (const id of ["sort", "show", "kind"]) $(id).addEventListener("change", filter);
  $("search").addEventListener("input", filter);
  $("save").addEventListener("click", () => {
    const quote = (text) => `"${text.replaceAll('"', '""')}"`;
    const lines = shown.map((i) => [quote(paths[i]), scores[i], calibrated ? pValue(scores[i]) : "", flagged(i) ? "anomaly" : "normal"].join(","));
    const blob = new Blob([["path,score,p_value,verdict", ...lines, ""].join("\n")], { type: "text/csv" });
    const link = el("a", { download: "images.csv" });
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // ---- start -----------------------------------------------------------------------------------------------------------------------------
  if (labelled) {
    $("performance").hidden = false;
    $("kind-label").hidden = false;
    for (const name of [...groups.keys()].sort()) $("kind").append(el("option", { value: name }, name));
    $("show").append(el("option", { value: "false" }, "false alarms"), el("option", { value: "missed" }, "missed anomalies"));
  }
  let waiting = false;
  window.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; render(false); });
  }, { passive: true });
  window.addEventListener("resize", () => { layout(); histogram.draw(); mini.draw(); drawScatter(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawScatter);
  filter();
  setThreshold(start);
  if (count) choose(0);
  openPanel(count > 0 && !window.matchMedia("(max-width: 1000px)").matches);
})();
