"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const {settings, runs, names} = data;
const root = document.documentElement;
const $ = id => document.getElementById(id);
const FIRST = 24;

// What the reader chose outlives a reload, where the browser lets a page keep it.
const kept = (() => { try { return JSON.parse(sessionStorage.getItem(location.pathname)) || {}; } catch { return {}; } })();
const keep = change => {
  Object.assign(kept, change);
  try { sessionStorage.setItem(location.pathname, JSON.stringify(kept)); } catch { /* not from disk in this browser */ }
};

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const none = "–";
const fixed = digits => n => n == null ? none : n.toFixed(digits);
const grouped = n => n == null ? none : n.toLocaleString("en-US");
const size = n => n == null ? none : n < 1e3 ? n + " B" : n < 1e6 ? (n / 1e3).toFixed(1) + " kB" : n < 1e9 ? (n / 1e6).toFixed(1) + " MB" : (n / 1e9).toFixed(2) + " GB";
// A number drawn at random has more digits than anyone reads.
const figure = n => { const short = Number.isInteger(n) ? n : Number(n.toPrecision(4)); return n !== 0 && Math.abs(n) < 0.01 ? short.toExponential().replace("e+", "e") : String(short); };
const text = v => v === null || v === "" ? none : Array.isArray(v) ? v.map(text).join(" ") : typeof v === "number" ? figure(v) : String(v);
const spread = (s, error) => {
  const span = make("span");
  span.append(fixed(4)(s.median));
  if (error != null) span.append(make("span", "dev", " (s.e. " + error.toFixed(4) + ")"));
  if (s.deviation != null) span.append(make("span", "dev", " ± " + s.deviation.toFixed(4)));
  return span;
};

// The columns: a name, a value to sort by, and what is shown. Those in which nothing differs are said above.
const columns = [
  {name: "tool", of: s => runs.source[s.runs[0]], text: true},
  {name: "task", of: s => s.task, text: true},
  {name: "metric", of: s => s.metric, text: true},
  ...names.map((name, i) => ({name, of: s => s.values[i], show: v => text(v), text: settings.some(s => typeof s.values[i] === "string" || Array.isArray(s.values[i]))})),
  {name: "best", of: s => s.best.median, cell: s => spread(s.best, s.stderr), always: true, title: "at the best epoch: median ± standard deviation over seeds"},
  {name: "last", of: s => s.last.median, cell: s => spread(s.last), always: true, title: "at the last epoch"},
  {name: "best epoch", of: s => s.best_epoch.median, show: fixed(1), always: true},
  {name: "seeds", of: s => s.best.count, show: (n, s) => n === s.runs.length ? n : n + " of " + s.runs.length, always: true},
  {name: "parameters", of: s => s.parameters, show: grouped},
  {name: "head", of: s => s.head_parameters, show: grouped},
  {name: "file", of: s => s.adapter_bytes, show: size},
  {name: "seconds", of: s => s.seconds.median, show: fixed(1)},
  {name: "examples/s", of: s => s.examples_per_second.median, show: fixed(1)},
  {name: "peak MiB", of: s => s.peak_memory_mib, show: fixed(0)},
].filter((c, i) => {
  const all = settings.map(s => JSON.stringify(c.of(s)));
  return c.always || all.some(v => v !== all[0]) || settings.length === 1 && i > 2 && all[0] !== "null";
});

let {sort = null, down = false, filter = ""} = kept;
const open = new Set(kept.open || []);
let all = false;

// Words that all must match: `key=value`, `key<number`, `key>number`, or a part of anything.
const facts = settings.map(s => {
  const facts = new Map([["task", s.task], ["metric", s.metric], ["best", s.best.median], ["last", s.last.median], ["parameters", s.parameters]]);
  names.forEach((name, i) => facts.set(name.toLowerCase(), s.values[i]));
  return facts;
});
const hay = settings.map((s, i) => [s.label, s.task, s.metric, ...s.runs.map(r => runs.name[r]), ...[...facts[i]].map(([k, v]) => k + "=" + text(v ?? null))].join(" ").toLowerCase());
const matches = query => {
  // Names have spaces: `learning rate > 1e-3` is one word.
  const words = query.toLowerCase().replace(/\s*([<>=]+)\s*/g, "$1").replace(/_/g, " ");
  const tests = [];
  let rest = words;
  for (const name of [...names.map(n => n.toLowerCase()), "task", "metric", "best", "last", "parameters"].sort((a, b) => b.length - a.length)) {
    for (;;) {
      const at = rest.search(new RegExp("(^| )" + name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") + "[<>=]"));
      if (at < 0) break;
      const start = rest.indexOf(name, at), sign = rest[start + name.length];
      const value = rest.slice(start + name.length + 1).split(" ")[0];
      rest = rest.slice(0, start) + rest.slice(start + name.length + 1 + value.length);
      tests.push(i => {
        const have = facts[i].get(name), want = Number(value);
        if (sign === "=") return text(have ?? null).toLowerCase() === value || typeof have === "number" && have === want;
        return typeof have === "number" && (sign === "<" ? have < want : have > want);
      });
    }
  }
  const plain = rest.split(" ").filter(Boolean);
  return settings.map((_, i) => tests.every(t => t(i)) && plain.every(w => hay[i].includes(w)));
};

const compare = (a, b) => {
  const [none_a, none_b] = [a, b].map(v => v === null || v === undefined);
  if (none_a || none_b) return none_a - none_b;
  const order = typeof a === "number" && typeof b === "number" ? a - b : text(a).localeCompare(text(b), "en", {numeric: true});
  return down ? -order : order;
};

const runTable = s => {
  const shown = [["seed", "seed", text], ["best", "best", fixed(4)], ["last", "last", fixed(4)], ["best epoch", "best_epoch", fixed(1)], ["steps", "steps", grouped], ["seconds", "seconds", fixed(1)], ["examples/s", "examples_per_second", fixed(1)], ["peak MiB", "peak_memory_mib", fixed(0)]];
  const table = make("table"), head = make("tr");
  for (const [name] of [...shown, ["run"]]) head.append(make("th", name === "run" ? "text" : "", name));
  table.append(head);
  for (const r of s.runs) {
    const row = make("tr");
    for (const [, column, show] of shown) {
      const value = runs[column][r], cell = make("td", "", show(value));
      if (typeof value === "number" && show(value) !== String(value)) cell.title = value;
      row.append(cell);
    }
    const link = make("a", "", runs.name[r] + (runs.state[r] === "finished" ? "" : " (" + runs.state[r] + ")"));
    link.href = runs.href[r];
    const cell = make("td", "text");
    cell.append(link);
    row.append(cell);
    table.append(row);
  }
  return table;
};

const table = $("table");
const render = () => {
  const ok = matches(filter);
  let order = settings.map((_, i) => i).filter(i => ok[i]);
  const by = columns.find(c => c.name === sort);
  // Unsorted, the best of each kind come first.
  if (!by) order.sort((a, b) => settings[b].is_best - settings[a].is_best || a - b);
  else order.sort((a, b) => compare(by.of(settings[a]), by.of(settings[b])) || a - b);
  $("shown").textContent = order.length === settings.length ? settings.length + (settings.length === 1 ? " setting" : " settings") : order.length + " of " + settings.length + " settings";
  for (const mark of document.querySelectorAll("svg [data-s]")) mark.classList.toggle("off", !ok[mark.dataset.s]);
  const body = make("tbody");
  for (const i of all ? order : order.slice(0, FIRST)) {
    const s = settings[i], row = make("tr", "set" + (s.is_best ? " best" : "")), opener = make("td", "open"), button = make("button", "", open.has(i) ? "▾" : "▸");
    row.dataset.row = i;
    button.type = "button";
    button.setAttribute("aria-expanded", open.has(i));
    button.setAttribute("aria-label", "runs of " + (s.label || "this setting"));
    opener.append(button);
    row.append(opener);
    for (const c of columns) {
      const cell = make("td", c.text ? "text" : "");
      const value = c.of(s);
      cell.append(c.cell ? c.cell(s) : c.show ? c.show(value, s) : text(value ?? null));
      if (typeof value === "number") cell.title = value; else if (c.text) cell.title = text(value ?? null);
      row.append(cell);
    }
    if (s.is_best) row.title = "the best of what was searched";
    body.append(row);
    if (open.has(i)) {
      const runs = make("tr", "run"), cell = make("td");
      cell.colSpan = columns.length + 1;
      cell.append(runTable(s));
      runs.append(cell);
      body.append(runs);
    }
  }
  table.querySelector("tbody")?.remove();
  table.append(body);
  for (const th of table.querySelectorAll("th[data-name]")) {
    if (th.dataset.name === sort) th.setAttribute("aria-sort", down ? "descending" : "ascending"); else th.removeAttribute("aria-sort");
  }
  const more = $("more");
  more.hidden = all || order.length <= FIRST;
  more.textContent = "Show all " + order.length + " settings";
};

const head = make("tr");
head.append(make("th"));
for (const c of columns) {
  const th = make("th", c.text ? "text" : ""), button = make("button", "", c.name);
  th.dataset.name = c.name;
  th.scope = "col";
  button.type = "button";
  if (c.title) button.title = c.title;
  button.addEventListener("click", () => {
    // The best first: the first click on a metric goes down.
    if (sort === c.name) down = !down; else { sort = c.name; down = (c.name === "best" || c.name === "last") && settings[0].higher_is_better; }
    keep({sort, down});
    render();
  });
  th.append(button);
  head.append(th);
}
const thead = make("thead");
thead.append(head);
table.append(thead);

const toggle = i => {
  if (!open.delete(i)) open.add(i);
  keep({open: [...open]});
  render();
};
table.addEventListener("click", event => {
  const row = event.target.closest("tr.set");
  if (!row || event.target.closest("a")) return;
  toggle(Number(row.dataset.row));
  table.querySelector(`tr[data-row="${row.dataset.row}"] button`)?.focus({preventScroll: true});
});
$("more").addEventListener("click", () => { all = true; render(); });
const box = $("filter");
box.value = filter;
let wait;
box.addEventListener("input", () => {
  clearTimeout(wait);
  wait = setTimeout(() => { filter = box.value; keep({filter}); render(); }, 80);
});

// Plots and table point at each other.
const lit = [];
const light = (s, from) => {
  for (const node of lit.splice(0)) node.classList.remove("lit");
  if (s === null) return;
  for (const node of document.querySelectorAll(`svg [data-s="${s}"], tr[data-row="${s}"]`)) {
    if (node.matches("rect") && node !== from) continue;
    node.classList.add("lit");
    lit.push(node);
  }
};
const tip = $("tip");
const describe = (mark) => {
  const s = settings[mark.dataset.s], r = mark.dataset.r;
  tip.replaceChildren(make("b", "", s.label || s.task));
  const line = (name, value) => { const div = make("div"); div.append(make("span", "", name + " "), value); tip.append(div); };
  if (r !== undefined) line(s.metric + ", seed " + text(runs.seed[r]), fixed(4)(runs.best[r]));
  line(s.metric + (s.best.count > 1 ? ", median of " + s.best.count : ""), spread(s.best));
  if (s.parameters != null) line("parameters", grouped(s.parameters));
};
const move = event => {
  const wide = tip.offsetWidth, high = tip.offsetHeight;
  tip.style.left = Math.max(8, Math.min(event.clientX + 14, innerWidth - wide - 8)) + "px";
  tip.style.top = (event.clientY + high + 24 > innerHeight ? event.clientY - high - 12 : event.clientY + 16) + "px";
};
document.addEventListener("pointerover", event => {
  const mark = event.target.closest?.("svg [data-s]"), row = event.target.closest?.("tr.set");
  if (mark && settings[mark.dataset.s]) { describe(mark); tip.hidden = false; move(event); light(mark.dataset.s, mark); }
  else { tip.hidden = true; light(row ? row.dataset.row : null, row); }
});
document.addEventListener("pointermove", event => { if (!tip.hidden) move(event); });
document.addEventListener("click", event => {
  const mark = event.target.closest?.("svg [data-s]");
  if (!mark || !settings[mark.dataset.s]) return;
  const i = Number(mark.dataset.s);
  open.add(i);
  all = true;
  render();
  table.querySelector(`tr[data-row="${i}"]`)?.scrollIntoView({block: "center"});
  light(i, mark);
});

const theme = value => {
  if (value) root.dataset.theme = value; else delete root.dataset.theme;
  keep({theme: value});
};
if (kept.theme) theme(kept.theme);
$("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(isDark ? "light" : "dark");
});

render();
if ("live" in root.dataset) {
  if (kept.scroll) scrollTo(0, kept.scroll);
  // Not while the reader types or points.
  const again = () => {
    if (document.activeElement === box || !tip.hidden) return setTimeout(again, 1000);
    keep({scroll: scrollY});
    location.reload();
  };
  setTimeout(again, 5000);
}
})();
