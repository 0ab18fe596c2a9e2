"use strict";
// Draws the charts, sets their parameters from the controls, and shows what a mark says.
const packed = Uint8Array.from(atob(document.getElementById("charts").textContent), (one) => one.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const { config, datasets, specs } = await new Response(unpacked).json();
const drawn = [];

const rows = (columns) => {
  const names = Object.keys(columns);
  const row = (at) => Object.fromEntries(names.map((name) => [name, columns[name][at]]));
  return (columns[names[0]] ?? []).map((_, at) => row(at));
};
const chosen = (control) => {
  const values = [...control.querySelectorAll("input:checked")].map((input) => input.value);
  if (control.querySelector("[type=checkbox]")) return values;
  return values[0] && !isNaN(values[0]) ? Number(values[0]) : values[0] ?? "";
};
const scope = (control) => control.closest("section") ?? document.body;
const controlOf = (holder, name) => {
  const among = `[data-parameter="${name}"]`;
  return holder.closest("section")?.querySelector(among) ?? document.querySelector(`header ${among}`);
};

const tip = document.getElementById("tip");
const say = (words, x, y) => {
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  const above = y - tip.offsetHeight - 14;
  tip.style.left = `${Math.max(8, Math.min(x + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${above > 4 ? above : y + 20}px`;
};
const tooltip = (_handler, event, _item, words) => {
  if (event.pointerType !== "touch") say(words, event.clientX, event.clientY);
};
// A finger cannot hover over a mark: it finds the nearest one.
const REACH = 18;
document.addEventListener("pointerdown", ({ pointerType, target, clientX: x, clientY: y }) => {
  if (pointerType !== "touch") return;
  let nearest = { away: REACH };
  for (const mark of target.closest("svg")?.querySelectorAll("path[aria-label]:not(.role-axis *)") ?? []) {
    const { left, right, top, bottom } = mark.getBoundingClientRect();
    const away = Math.hypot(Math.max(left - x, 0, x - right), Math.max(top - y, 0, y - bottom));
    if (away < nearest.away) nearest = { away, words: mark.getAttribute("aria-label") };
  }
  say(nearest.words, x, y);
});
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

const apply = (control) => {
  const name = control.dataset.parameter;
  if (name === "against") document.body.dataset.against = chosen(control);
  for (const { holder, view, spec } of drawn)
    if (scope(control).contains(holder) && spec.params?.some((one) => one.name === name))
      view.signal(name, chosen(control)).runAsync();
};
document.addEventListener("change", ({ target }) => apply(target.closest("[data-parameter]")));
document.addEventListener("click", ({ target }) => {
  if (!target.matches("fieldset button")) return;
  const control = target.closest("[data-parameter]");
  for (const input of control.querySelectorAll("input:checked")) input.checked = false;
  apply(control);
});

for (const holder of document.querySelectorAll("[data-chart]")) {
  const spec = specs[holder.dataset.chart];
  const width = () => holder.clientWidth - spec.padding.left - spec.padding.right;
  spec.width = width();
  for (const one of spec.params ?? []) {
    const control = controlOf(holder, one.name);
    if (control) one.value = chosen(control);
  }
  spec.datasets = {};
  JSON.stringify(spec, (key, value) => {
    if (key === "data" && value?.name) spec.datasets[value.name] = rows(datasets[value.name]);
    return value;
  });
  const options = { config, mode: "vega-lite", renderer: "svg", ast: true, actions: false, tooltip, logLevel: 1 };
  const { view } = await vegaEmbed(holder, spec, { ...options, defaultStyle: false });
  drawn.push({ holder, view, spec });
  new ResizeObserver(() => { if (width() !== view.width()) view.width(width()).runAsync(); }).observe(holder);
}
document.body.dataset.drawn = drawn.length;
