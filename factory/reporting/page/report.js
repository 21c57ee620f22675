"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Colours come from the page, so that a chart is of the same theme.
  function config() {
    const ink = getComputedStyle(document.body).color;
    const muted = getComputedStyle(document.querySelector(".kicker")).color;
    const line = getComputedStyle(document.querySelector("nav")).borderBottomColor;
    const font = getComputedStyle(document.body).fontFamily;
    const text = { labelColor: muted, titleColor: muted, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400 };
    return {
      background: "transparent", font, padding: 2,
      view: { stroke: null },
      axis: { ...text, gridColor: line, domainColor: line, tickColor: line, labelOverlap: true, labelSeparation: 6, labelPadding: 5, titlePadding: 8 },
      axisX: { grid: false },
      legend: { ...text, labelColor: ink, offset: 6 },
      text: { color: ink, fontSize: 11 },
      bar: { binSpacing: 1 },
      tooltip: { theme: isDark() ? "dark" : "light" },
    };
  }

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  }

  // The interpreter needs no eval, which the page's policy forbids.
  async function draw(place) {
    const { spec, rows } = figures[place.dataset.figure];
    const options = {
      actions: false, renderer: "svg", ast: true, config: config(),
      defaultStyle: false, tooltip: { theme: isDark() ? "dark" : "light" },
    };
    await vegaEmbed(place, { ...spec, data: { name: "rows", values: rows } }, options);
  }

  async function drawAll() {
    root.removeAttribute("data-drawn");
    for (const place of document.querySelectorAll(".chart")) await draw(place);
    root.dataset.drawn = isDark() ? "dark" : "light";
  }

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    drawAll();
  });
  dark.addEventListener("change", drawAll);

  function csv(rows) {
    const names = Object.keys(rows[0] ?? {});
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : Array.isArray(value) ? value.join(" ") : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(cell).join(",") + "\n").join("");
  }

  function save(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  for (const button of document.querySelectorAll(".csv, .json")) {
    button.addEventListener("click", () => {
      const name = button.dataset.figure;
      const rows = figures[name].rows;
      if (button.className === "csv") save(`${name}.csv`, csv(rows), "text/csv");
      else save(`${name}.json`, JSON.stringify(rows, null, 1), "application/json");
    });
  }

  // report.html#search=word&group=worst%20by%20chrF opens on what was searched.
  const search = document.getElementById("search");
  const group = document.getElementById("group");
  const rows = [...document.querySelectorAll("#rows > li")];
  const texts = rows.map((row) =>
    [...row.querySelectorAll("code, dd, .reason")].map((part) => part.textContent).join(" ").toLowerCase());

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    rows.forEach((row, place) => {
      const fits = (!group.value || row.dataset.group === group.value) && words.every((word) => texts[place].includes(word));
      row.hidden = !fits;
      found += fits;
    });
    document.getElementById("found").textContent = `${found} of ${rows.length}`;
  }

  function asked() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (!wanted.has("search") && !wanted.has("group")) return false;
    search.value = wanted.get("search") ?? "";
    group.value = wanted.get("group") ?? "";
    filter();
    document.getElementById("samples").scrollIntoView();
    return true;
  }

  function remember() {
    filter();
    const wanted = new URLSearchParams();
    if (search.value) wanted.set("search", search.value);
    if (group.value) wanted.set("group", group.value);
    history.replaceState(null, "", `#${String(wanted) || "samples"}`);
  }

  drawAll().then(() => {
    if (!search) return;
    search.addEventListener("input", remember);
    group.addEventListener("change", remember);
    search.form.addEventListener("submit", (event) => event.preventDefault());
    addEventListener("hashchange", asked);
    if (!asked()) {
      group.selectedIndex = 1;
      filter();
    }
  });
})();
