"use strict";
// Says the mark nearest to the pointer, or to the finger. Without it the page is whole all the same.
const REACH = 18;
const tip = document.getElementById("tip");
const away = ({ left, right, top, bottom }, x, y) =>
  Math.hypot(Math.max(left - x, 0, x - right), Math.max(top - y, 0, y - bottom));

const say = ({ target, clientX: x, clientY: y }) => {
  const picture = target.closest?.("svg");
  let nearest = null;
  let distance = REACH;
  for (const mark of picture?.querySelectorAll('[role="graphics-symbol"][aria-label]:not(.role-axis)') ?? []) {
    const far = away(mark.getBoundingClientRect(), x, y);
    if (far < distance) [nearest, distance] = [mark, far];
    if (far === 0) break;
  }
  tip.hidden = !nearest;
  if (!nearest) return;
  tip.textContent = nearest.getAttribute("aria-label");
  const above = y - tip.offsetHeight - 14;
  tip.style.left = `${Math.max(8, Math.min(x + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${above > 4 ? above : y + 20}px`;
};

document.addEventListener("pointermove", say);
document.addEventListener("pointerdown", say);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
