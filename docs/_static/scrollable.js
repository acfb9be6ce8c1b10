// What scrolls sideways within a page takes the focus, so that the arrow keys scroll it too.
"use strict";
function focusable() {
  for (const each of document.querySelectorAll(".table-wrapper, .highlight pre")) {
    const scrolls = each.scrollWidth > each.clientWidth || each.scrollHeight > each.clientHeight;
    if (scrolls && !each.hasAttribute("tabindex")) each.tabIndex = 0;
  }
}
addEventListener("DOMContentLoaded", focusable);
addEventListener("load", focusable);
addEventListener("resize", focusable);
