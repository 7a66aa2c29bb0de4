"use strict";
// The page of a watcher. What names and texts hold is only ever set as text.
const MOST = 240; // pictures on the page
const byId = (id) => document.getElementById(id);
let newest = 0, oldest = Infinity, known = "", source = null;

function make(tag, kind, text) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
}

function when(seconds) { return new Date(seconds * 1000).toLocaleString(); }

// The stream

function item(event) {
  const node = make("article", "item " + (event.verdict || "error"));
  node.dataset.id = event.id;
  const pane = make("div", "pane");
  if (event.score !== null) {
    const picture = make("img");
    picture.src = "/api/pictures/" + event.id;
    picture.alt = "";
    picture.loading = "lazy";
    picture.addEventListener("error", () => picture.remove());
    pane.append(picture);
  }
  const name = event.path.split("/").pop();
  const line = make("div", "", name);
  const p = event.p_value === null ? "" : " " + event.p_value.toPrecision(2);
  const verdict = make("div", "verdict", (event.verdict || "error") + p);
  const belongs = event.error || (event.cluster === null ? "" : event.name || "proposal " + event.cluster);
  node.title = "p-value " + event.p_value + "\n" + event.path + "\n" + when(event.time) + (event.error ? "\n" + event.error : "");
  node.append(pane, verdict, line, make("div", "", belongs));
  if (event.alarm) node.append(make("span", "bell", "alarm"));
  return node;
}

function wanted(event) {
  return (!byId("only").checked || event.verdict === "anomaly") && (!byId("alarms-only").checked || event.alarm);
}

function add(events) {
  for (const event of events) newest = Math.max(newest, event.id);
  if (byId("hold").checked) return;
  const list = byId("stream");
  for (const event of events) {
    oldest = Math.min(oldest, event.id);
    if (wanted(event)) list.prepend(item(event));
  }
  while (list.children.length > MOST) list.lastElementChild.remove();
  const last = list.lastElementChild;
  if (last && list.children.length === MOST) oldest = Number(last.dataset.id);
}

async function load(before) {
  const query = new URLSearchParams({ flagged: byId("only").checked, alarms: byId("alarms-only").checked });
  if (before) query.set("before", before);
  const events = await (await fetch("/api/events?" + query)).json();
  const list = byId("stream");
  if (!before) { list.replaceChildren(); oldest = Infinity; }
  for (const event of events) {
    list.append(item(event));
    oldest = Math.min(oldest, event.id);
    newest = Math.max(newest, event.id);
  }
  byId("older").disabled = events.length === 0;
}

// Everything else

function proposal(given, adopt) {
  const node = make("div", "proposal");
  node.dataset.id = given.id;
  const names = { open: "open", accepted: "normal", rejected: "an anomaly" };
  node.append(make("strong", "", "Proposal " + given.id));
  node.append(" " + given.pictures + " pictures, " + (names[given.status] || given.status) + (given.name ? ": " + given.name : ""));
  const montage = make("img");
  montage.src = "/api/proposals/" + given.id;
  montage.alt = "the pictures of proposal " + given.id;
  montage.addEventListener("error", () => montage.remove());
  if (given.status !== "open") return node;
  node.tabIndex = 0;
  const row = make("div", "row");
  const accept = make("button", "first", "Accept as normal");
  accept.disabled = adopt === "never";
  accept.addEventListener("click", () => decide("/api/accept/" + given.id));
  const name = make("input");
  name.placeholder = "name of the anomaly";
  name.setAttribute("aria-label", "name of the anomaly");
  name.maxLength = 100;
  const reject = make("button", "", "Reject");
  reject.addEventListener("click", () => decide("/api/reject/" + given.id + "?" + new URLSearchParams({ name: name.value })));
  row.append(accept, name, reject);
  node.append(montage, row);
  return node;
}

async function decide(path) {
  const answer = await fetch(path, { method: "POST", headers: { "X-Pad": "1" } });
  const content = await answer.json();
  byId("refused").hidden = answer.ok;
  if (answer.ok) show(content); else byId("refused").textContent = content.detail;
}

function show(state) {
  byId("events").textContent = state.counts.events.toLocaleString();
  byId("evidence").textContent = Number(state.evidence.toPrecision(3)).toLocaleString();
  byId("evidence").parentElement.classList.toggle("hot", state.evidence >= 20 || state.alarms.length > 0);
  byId("version").textContent = state.version;
  byId("normals").textContent = state.normals.length;
  byId("rollback").disabled = state.normals.length === 0;
  rates(state.rates, state.fpr);
  alarms(state.online_fdr);
  const text = JSON.stringify([state.proposals, state.adopt]);
  const typing = document.activeElement && document.activeElement.closest("#proposals input");
  if (text !== known && !typing) {
    const focused = document.activeElement && document.activeElement.closest(".proposal");
    known = text;
    const nodes = state.proposals.map((given) => proposal(given, state.adopt));
    byId("proposals").replaceChildren(...(nodes.length ? nodes : [make("p", "hint", "None yet.")]));
    const again = focused && nodes.find((node) => node.dataset.id === focused.dataset.id);
    if (again) again.focus();
  }
  const lines = [
    ...state.decisions.map((d) => [d.time, d.what === "learn" ? "the generator has learnt proposal " + d.proposal
      : d.what + " proposal " + d.proposal + ", by " + d.by]),
    ...state.alarms.map((a) => [a.time, "drift: " + a.changed + " (evidence " + Math.round(a.evidence) + ", picture " + a.event + ")"]),
  ].sort((a, b) => b[0] - a[0]).map(([time, words]) => make("li", "", when(time) + "  " + words));
  byId("history").replaceChildren(...(lines.length ? lines : [make("li", "hint", "Nothing was decided yet.")]));
}

function alarms(rule) {
  for (const node of document.querySelectorAll("[data-alarms]")) node.hidden = !rule;
  if (!rule) {
    if (byId("alarms-only").checked) byId("alarms-only").click();
    return;
  }
  byId("raised").textContent = rule.raised.toLocaleString();
  byId("alarms-words").textContent = "At most " + percent(rule.rate) + " of a period's alarms are false, in expectation. Picture "
    + rule.seen + " of " + rule.period + " of this period, " + rule.alarms + (rule.alarms === 1 ? " alarm" : " alarms")
    + " in it; the next one takes a p-value of at most " + rule.level.toPrecision(2) + ".";
  const lines = rule.latest.map((event) => {
    const line = make("li", "", " " + when(event.time) + "  picture " + event.id + ", " + event.path.split("/").pop()
      + ", p-value " + event.p_value.toPrecision(2));
    line.prepend(make("span", "bell", "alarm"));
    return line;
  });
  byId("alarms").replaceChildren(...(lines.length ? lines : [make("li", "hint", "None yet.")]));
}

function percent(share) { return Number((100 * share).toPrecision(3)) + " %"; }

function rates(buckets, fpr) {
  const svg = byId("rates"), space = "http://www.w3.org/2000/svg";
  const draw = (tag, values) => {
    const node = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
    return node;
  };
  const width = 500 / Math.max(20, buckets.length);
  const bars = buckets.map(([, count, flagged], i) => {
    const height = Math.max(1, 116 * flagged / count);
    return draw("rect", { x: i * width + 1, y: 118 - height, width: width - 2, height });
  });
  const asked = draw("line", { x1: 0, x2: 500, y1: 118 - 116 * fpr, y2: 118 - 116 * fpr });
  svg.replaceChildren(...bars, asked);
  const count = buckets.reduce((sum, b) => sum + b[1], 0), flagged = buckets.reduce((sum, b) => sum + b[2], 0);
  byId("flagged").textContent = count ? (100 * flagged / count).toFixed(1) + " %" : "–";
  byId("of").textContent = count.toLocaleString();
  byId("rate-words").textContent = count
    ? flagged + " of the latest " + count + " pictures were flagged; the line is the rate asked for, " + percent(fpr) + "."
    : "No pictures yet.";
}

function connect() {
  if (source) source.close();
  source = new EventSource("/api/stream?after=" + newest);
  source.addEventListener("open", () => { byId("link").textContent = "live"; });
  source.addEventListener("pictures", (message) => add(JSON.parse(message.data)));
  source.addEventListener("state", (message) => show(JSON.parse(message.data)));
  source.addEventListener("error", () => {
    byId("link").textContent = "no connection; trying again";
    source.close();
    setTimeout(connect, 1000);
  });
}

byId("only").addEventListener("change", () => load());
byId("alarms-only").addEventListener("change", () => load());
byId("hold").addEventListener("change", () => { if (!byId("hold").checked) load(); });
byId("older").addEventListener("click", () => load(oldest === Infinity ? 0 : oldest));
byId("rollback").addEventListener("click", () => decide("/api/rollback"));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const focused = document.activeElement && document.activeElement.closest(".proposal");
  if (event.key === "p") { const first = document.querySelector(".proposal[tabindex]"); if (first) first.focus(); }
  else if (event.key === "a" && focused) focused.querySelector("button.first").click();
  else if (event.key === "r" && focused) focused.querySelector("button:not(.first)").click();
  else if (event.key === "l" && !byId("alarms-head").closest("[hidden]")) { byId("alarms-only").click(); byId("stream").focus(); }
  else return;
  event.preventDefault();
});
load().then(connect);
