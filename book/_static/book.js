/* Small repairs of the theme, for keyboards and screen readers. */
(function () {
  "use strict";

  /** What can be scrolled sideways must be reachable with the keyboard. */
  function reachScrollable() {
    const wide = ".pst-scrollable-table-container, .cell_output .text_html, mjx-container[display=true], pre";
    document.querySelectorAll(".bd-article :is(" + wide + ")").forEach((part) => {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    });
  }

  /** The sidebar is no landmark of its own in the theme. */
  function nameLandmarks() {
    const sidebar = document.querySelector(".bd-sidebar-primary");
    if (sidebar) {
      sidebar.setAttribute("role", "complementary");
      sidebar.setAttribute("aria-label", "Book");
    }
  }

  window.addEventListener("load", () => {
    nameLandmarks();
    reachScrollable();
    if (window.MathJax && window.MathJax.startup) window.MathJax.startup.promise.then(reachScrollable);
  });
  window.addEventListener("resize", reachScrollable);
})();
