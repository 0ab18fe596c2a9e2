"use strict";
// Says the mark under the pointer, or under the finger. Without it the page is whole all the same.
const tip = document.getElementById("tip");
const say = (event) => {
  const mark = event.target.closest?.('svg [role="graphics-symbol"][aria-label]:not(.role-axis)');
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  const above = event.clientY - tip.offsetHeight - 12;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
};
document.addEventListener("pointermove", say);
document.addEventListener("pointerdown", say);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
