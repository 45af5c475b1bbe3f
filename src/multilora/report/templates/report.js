"use strict";
(() => {
  const specifications = JSON.parse(document.getElementById("report-data").textContent);
  const ink = "currentColor"; // so that charts follow light, dark and print without being drawn again
  const config = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: "transparent" },
    axis: {
      labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink, gridColor: ink, gridOpacity: 0.15,
      domainOpacity: 0.5, tickOpacity: 0.5, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
      labelLimit: 170,
    },
    legend: { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    title: { color: ink },
  };
  const views = {};
  window.reportViews = views;

  const legends = (specification, columns) => {
    const channels = [];
    const visit = (value) => {
      if (!value || typeof value !== "object") return;
      if (value.encoding) channels.push(...Object.values(value.encoding));
      (value.layer || []).forEach(visit);
    };
    visit(specification);
    for (const channel of channels) if (channel && channel.legend && channel.legend.columns) channel.legend.columns = columns;
  };

  const draw = async (place) => {
    const name = place.dataset.chart;
    const specification = structuredClone(specifications[name]);
    if (place.clientWidth < 560) legends(specification, 1);
    try {
      const result = await vegaEmbed(place, specification, { actions: false, renderer: "svg", config });
      // The selectors belong above the chart.
      const selectors = place.querySelector(".vega-bindings");
      if (selectors) place.prepend(selectors);
      views[name] = result.view;
    } catch (error) {
      place.textContent = `This chart cannot be drawn: ${error.message}`;
      console.error(error);
    }
  };

  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (rows) => {
    const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    return [columns, ...rows.map((row) => columns.map((column) => row[column]))]
      .map((values) => values.map(cell).join(",")).join("\n") + "\n";
  };
  for (const button of document.querySelectorAll("button.csv")) {
    button.addEventListener("click", () => {
      const name = button.dataset.csv;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([csv(specifications[name].data.values)], { type: "text/csv" }));
      link.download = `${name}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
  Promise.all([...document.querySelectorAll(".chart")].map(draw)).then(() => {
    document.documentElement.dataset.drawn = "yes";
  });
})();
