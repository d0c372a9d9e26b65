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

  /** The search button shows "Search Ctrl+K" and is called "Search": let it be called what it shows. */
  function nameSearchButton() {
    document.querySelectorAll(".search-button-field").forEach((button) => {
      button.removeAttribute("aria-label");
    });
  }

  /** Sphinx sets a long signature as a list of descriptions with no terms. */
  function flattenSignatures() {
    document.querySelectorAll("dt.sig dl").forEach((list) => list.setAttribute("role", "presentation"));
  }

  /** The bibliography is marked as a list whose entries have a role that is no longer in use. */
  function listReferences() {
    document.querySelectorAll(".citation-list > .citation").forEach((entry) => {
      entry.setAttribute("role", "listitem");
    });
  }

  window.addEventListener("load", () => {
    flattenSignatures();
    listReferences();
    nameLandmarks();
    nameSearchButton();
    reachScrollable();
    if (window.MathJax && window.MathJax.startup) window.MathJax.startup.promise.then(reachScrollable);
  });
  window.addEventListener("resize", reachScrollable);
})();
