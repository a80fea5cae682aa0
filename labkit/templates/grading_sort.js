// Sort a table by the column heading that is clicked or chosen by keyboard; again to reverse.
document.querySelectorAll("table.sortable th").forEach((th) => {
  th.tabIndex = 0;
  th.addEventListener("keydown", (event) => {
    if (!["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    th.click();
  });
  th.addEventListener("click", () => {
    const body = th.closest("table").tBodies[0];
    const i = th.cellIndex;
    const key = (row) => row.cells[i].dataset.key ?? row.cells[i].textContent;
    const sign = th.ariaSort === "ascending" ? -1 : 1;
    for (const other of th.parentNode.cells) other.ariaSort = null;
    th.ariaSort = sign === 1 ? "ascending" : "descending";
    const order = (a, b) => sign * key(a).localeCompare(key(b), undefined, { numeric: true });
    body.append(...[...body.rows].sort(order));
  });
});
