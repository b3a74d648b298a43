"use strict";
// Sort, filter, theme, and what stands behind a number. The page is whole without this, only not interactive.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  // Builds an element: make("p", {class: "note"}, "text", other element).
  function make(tag, attributes = {}, ...children) {
    const space = ["svg", "path", "line", "text", "circle", "title"].includes(tag);
    const node = space ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  }

  // Theme
  const themes = ["auto", "light", "dark"];
  function setTheme(name) {
    document.documentElement.dataset.theme = name;
    $("theme").textContent = `Theme: ${name}`;
    try { localStorage.setItem("theme", name); } catch { /* a browser may forbid it to files */ }
  }
  let stored = "auto";
  try { stored = localStorage.getItem("theme") || "auto"; } catch { /* as above */ }
  setTheme(themes.includes(stored) ? stored : "auto");
  $("theme").addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length]);
  });

  // Sorting: once down, twice up, three times as the paper has it
  function sortable(table) {
    const body = table.tBodies[0], original = [...body.rows];
    const heads = [...table.querySelectorAll("th[data-column]")];
    for (const head of heads) {
      const button = make("button", {type: "button", class: "sort"});
      while (head.firstChild && head.firstChild.nodeName !== "SUP") button.append(head.firstChild);
      head.prepend(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const index = Number(head.dataset.column);
        const cycle = index ? ["none", "descending", "ascending"] : ["none", "ascending", "descending"];
        const next = cycle[(cycle.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        for (const other of heads) other.setAttribute("aria-sort", other === head ? next : "none");
        const sign = next === "ascending" ? 1 : -1;
        const key = (row) => row.cells[index].dataset.order;
        const rows = [...original];
        if (next !== "none") rows.sort((a, b) => {
          if (!index) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent, "en", {numeric: true});
          if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
          return sign * (Number(key(a)) - Number(key(b)));
        });
        body.append(...rows);
      });
    }
  }

  // Filter: all words must be in the row, in its columns' names or in its notes
  const rows = [];
  for (const section of document.querySelectorAll("section.table")) {
    const title = section.querySelector("h3").textContent;
    const notes = Object.fromEntries([...section.querySelectorAll(".footnotes li")].map((li) => [`#${li.id}`, li.textContent]));
    for (const row of section.querySelectorAll("tbody tr")) {
      const marks = [...row.querySelectorAll("sup a")].map((a) => notes[a.getAttribute("href")] || "");
      const columns = [...row.cells].slice(1).filter((cell) => cell.className).map((cell) => cell.dataset.column);
      const text = [title, row.cells[0].textContent, ...columns, ...marks].join(" ").toLowerCase();
      const states = new Set([...row.cells].map((cell) => cell.className));
      rows.push({row, text, states, block: section.closest(".block")});
    }
  }
  function filter() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), wanted = $("status").value;
    const active = words.length > 0 || wanted !== "", open = new Set();
    let hits = 0;
    for (const {row, text, states, block} of rows) {
      const hit = words.every((word) => text.includes(word)) && (!wanted || states.has(wanted));
      row.hidden = !hit;
      if (hit) { hits += 1; open.add(block); }
    }
    for (const block of document.querySelectorAll(".block")) block.hidden = active && !open.has(block);
    $("hits").textContent = active ? `${hits} of ${rows.length} rows in ${open.size} tables` : "";
  }
  $("search").addEventListener("input", filter);
  $("status").addEventListener("change", filter);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName) && !$("cell").open) {
      event.preventDefault();
      $("search").focus();
    }
  });

  // A small chart: series are {name, colour, points: [[x, y]], dots}; `at` is a vertical mark
  function chart(label, xlabel, series, at) {
    const width = 420, height = 210, left = 46, right = 12, top = 20, bottom = 34;
    series = series.filter((one) => one.points.length);
    const xs = series.flatMap((one) => one.points.map((p) => p[0])), ys = series.flatMap((one) => one.points.map((p) => p[1]));
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    if (y0 === y1) { y0 -= 1; y1 += 1; }
    const x = (v) => left + (width - left - right) * (x1 > x0 ? (v - x0) / (x1 - x0) : 0.5);
    const y = (v) => height - bottom - (height - top - bottom) * (v - y0) / (y1 - y0);
    const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": label});
    for (let i = 0; i <= 4; i += 1) {
      const value = y0 + (y1 - y0) * i / 4;
      svg.append(make("line", {x1: left, x2: width - right, y1: y(value), y2: y(value), class: "axis"}));
      svg.append(make("text", {x: left - 5, y: y(value) + 4, "text-anchor": "end"}, y1 - y0 < 5 ? value.toFixed(2) : value.toFixed(0)));
    }
    for (const value of [...new Set([x0, (x0 + x1) / 2, x1])]) {
      svg.append(make("text", {x: x(value), y: height - bottom + 15, "text-anchor": "middle"}, String(Math.round(value * 10) / 10)));
    }
    svg.append(make("text", {x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle"}, xlabel));
    if (at !== undefined && at !== null) {
      svg.append(make("line", {x1: x(at), x2: x(at), y1: top, y2: height - bottom, stroke: "currentColor", "stroke-dasharray": "3 3"}));
    }
    series.forEach(({name, colour, points, dots}, index) => {
      svg.append(make("path", {d: points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join(""), stroke: colour}));
      for (const p of dots ? points : []) svg.append(make("circle", {cx: x(p[0]), cy: y(p[1]), r: 3, fill: colour}, make("title", {}, `${name}: ${p[0]}, ${p[1]}`)));
      svg.append(make("circle", {cx: left + 8 + index * 150, cy: 9, r: 4, fill: colour}));
      svg.append(make("text", {x: left + 16 + index * 150, y: 13}, name));
    });
    return make("figure", {}, svg, make("figcaption", {}, label));
  }

  // What stands behind a number
  const blue = "#0072B2", orange = "#D55E00";
  const list = (pairs) => make("dl", {}, ...pairs.filter(([, v]) => v !== undefined && v !== "" && v !== null)
    .flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, String(v))]));
  function command(text) {
    const button = make("button", {type: "button"}, "Copy");
    button.addEventListener("click", () => {
      const done = () => { button.textContent = "Copied"; };
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => {});
    });
    return make("div", {class: "command"}, make("pre", {}, text), button);
  }
  const folded = (title, text) => make("details", {}, make("summary", {}, title), make("pre", {}, text));

  function charts(cell, run) {
    const found = [], curve = run ? run.curve : {};
    const pairs = (key) => (curve[key] || []).map((v, i) => [curve.step[i], v]).filter((p) => p[1] !== null);
    if (pairs("loss").length) found.push(chart("Training loss", "step", [{name: "loss", colour: blue, points: pairs("loss")}], run.selected));
    if (pairs("validation_accuracy").length) {
      found.push(chart("Validation accuracy (%); dashed: the step that was chosen", "step",
        [{name: "validation", colour: orange, points: pairs("validation_accuracy"), dots: true}], run.selected));
    }
    if (cell.alpha_curve) {
      found.push(chart("Accuracy (%) against alpha; dashed: the one that was chosen on validation", "alpha", [
        {name: "validation", colour: orange, points: cell.alpha_curve.val, dots: true},
        {name: "test", colour: blue, points: cell.alpha_curve.test, dots: true}], cell.alpha));
    }
    return found.length ? make("div", {class: "charts"}, ...found) : null;
  }

  function share(value) {  // rounded down: 99.97 is not all
    return value === undefined ? undefined : `${Math.floor(1000 * value + 1e-9) / 10} %`;
  }

  function about(id, several) {
    const cell = data.cells[id], parts = [];
    if (several) parts.push(make("h3", {}, `Seed ${cell ? cell.seed : id}`));
    if (!cell) return [...parts, make("p", {class: "absent"}, "Not measured yet. This makes it:"), command(data.planned[id])];
    const run = data.runs[cell.run];
    const half = cell.ci95 === undefined ? "" : ` ± ${cell.ci95.toFixed(2)}`;
    parts.push(list([
      ["value", `${cell.value.toFixed(cell.decimals)}${half} (${cell.metric}, n = ${cell.n})`],
      ["scale", cell.scale], ["seed", cell.seed], ["checkpoint selection", cell.selection], ["data set", cell.dataset],
      ["alpha", cell.alpha], ["test clips that were there", share(cell.coverage)],
      ["training clips that were there", share(cell.coverage_train)], ["run", cell.run], ["cell", id],
      ["measured", cell.made], ["trained", run && run.made], ["weights", run && run.weights],
      ["evaluation took", run && run.evaluation],
    ]));
    parts.push(make("h3", {}, "Make it again"), command(data.planned[id]));
    const drawn = charts(cell, run);
    if (drawn) parts.push(make("h3", {}, "Curves"), drawn);
    parts.push(make("h3", {}, "Settings"), folded("Measurement", cell.measure));
    if (run) parts.push(folded("Training: what came out", run.trained), folded("Training: all settings", run.settings));
    return parts;
  }

  function open(place) {
    const section = place.closest("section"), row = place.parentElement.cells[0].cloneNode(true);
    for (const mark of row.querySelectorAll("sup")) mark.remove();
    const name = row.textContent, column = place.dataset.column;
    const asked = (data.asked[section.id] || {})[`${name}\n${column}`];
    const ids = place.dataset.cells.split(";");
    const notes = [...place.parentElement.cells[0].querySelectorAll("sup a"), ...place.querySelectorAll("sup a")]
      .map((a) => document.querySelector(a.getAttribute("href")).textContent);
    $("cell-body").replaceChildren(
      make("h2", {id: "cell-title"}, `${name}, ${column}`),
      make("p", {class: "measured"}, section.querySelector("h3").textContent),
      make("p", {class: "value"}, [...place.querySelectorAll(".ours, .printed")]
        .map((x) => x.className === "printed" ? x.textContent.replace("(", "(published ") : x.textContent).join(" ")),
      ...notes.map((text) => make("p", {class: "note"}, text)),
      make("h3", {}, "What the sheet asks for, over the method's defaults"), make("pre", {}, asked || ""),
      ...ids.flatMap((id) => about(id, ids.length > 1)),
      make("h3", {}, "Software"), list([...document.querySelectorAll("#versions tr")].map((tr) => [tr.cells[0].textContent, tr.cells[1].textContent])),
    );
    $("cell").showModal();
    $("cell").scrollTop = 0;
  }

  for (const place of document.querySelectorAll("td[data-cells]")) {
    const ours = place.querySelector(".ours");
    const button = make("button", {type: "button", class: "number", "aria-haspopup": "dialog"});
    button.append(...ours.childNodes);
    ours.append(button);
    button.addEventListener("click", () => open(place));
  }
  $("cell").addEventListener("click", (event) => { if (event.target === $("cell")) $("cell").close(); });
  document.querySelectorAll("section.table table").forEach(sortable);
})();
