// Without this the page is one long page with everything in it. With it, a run is shown alone when a link asks for it.
(() => {
  "use strict";
  const all = document.getElementById("all");
  const runs = [...document.querySelectorAll(".run")];
  const title = document.title;
  let place = 0; // where the overview was left

  const show = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const run = target && target.closest(".run");
    if (run && !all.hidden) place = window.scrollY;
    const back = !run && all.hidden;
    all.hidden = Boolean(run);
    for (const other of runs) other.hidden = other !== run;
    document.title = run ? run.querySelector("h2").textContent : title;
    if (run) {
      window.scrollTo(0, 0);
      run.querySelector("h2").focus({ preventScroll: true });
    } else if (back) window.scrollTo(0, place);
  };
  window.addEventListener("hashchange", show);
  show();

  const table = document.querySelector("table.sortable");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const valued = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const sort = (heading, column) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (left, right) => {
      const [a, b] = [valued(left.cells[column]), valued(right.cells[column])];
      if (a === "" || b === "") return (a === "") - (b === ""); // what has no value stays last
      const numbers = left.cells[column].dataset.value !== undefined;
      return (down ? -1 : 1) * (numbers ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    };
    body.append(...[...body.rows].sort(order));
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sort(heading, column));
    heading.replaceChildren(button);
  });

  const find = document.querySelector(".find");
  find.hidden = false;
  find.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const left = rows.filter((row) => !row.hidden).length;
    find.querySelector("output").textContent = words.length ? `${left} of ${rows.length}` : "";
  });
})();
