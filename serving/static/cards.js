// Cards of moments: previews with text, as links.
import { query } from "./api.js";
import { reduced, showTime } from "./player.js";

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function drawing(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function preview(moment, version) {
  const still = reduced.matches ? 1 : null;
  const alt = `preview of ${moment.name}`;
  const image = element("img", { alt, loading: "lazy" });
  image.onerror = () => { image.alt = "no preview: the video is missing or damaged"; };
  image.src = `/media/preview?${query({ row: moment.row, version, still })}`;
  return image;
}

export function card(moment, version, href, title, ...lines) {
  const frame = element("span", { className: "frame" }, preview(moment, version));
  const link = element("a", { href }, frame, element("b", { textContent: title }));
  for (const line of lines) {
    link.append(typeof line === "string" ? element("small", { textContent: line }) : line);
  }
  return element("li", {}, link);
}

export function resultCard(result, version, bits, href) {
  const unit = result.distance === 1 ? "bit" : "bits";
  const share = 100 * result.share;
  const shown = share >= 1 ? `${Math.round(share)} %` : "less than 1 %";
  const scale = Math.min(100, 200 * result.distance / bits);  // codes without relation: half the bits
  const bar = drawing("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    drawing("rect", { width: Math.max(scale, 1.5), height: 8 }));
  const lines = [
    bar,
    `${result.distance} ${unit}; ${shown} are as near`,
    `${showTime(result.start)}–${showTime(result.end)}`,
    result.name,
  ];
  const item = card(result, version, href, result.class ?? "no class", ...lines);
  item.querySelector(".frame").append(element("span", { className: "rank", textContent: result.rank }));
  return item;
}

// The number of moments at each distance, up to that of codes without relation.
export function histogram(figure, counts, nearest, last) {
  const bits = counts.length - 1;
  const top = Math.max(...counts);
  const bars = counts.map((count, distance) => drawing("rect", {
    x: distance, width: 0.9, y: 100 - 100 * count / top, height: 100 * count / top,
    class: distance <= last ? "shown" : "",
  }));
  const picture = drawing("svg", {
    viewBox: `0 0 ${bits + 1} 100`, preserveAspectRatio: "none", role: "img",
    "aria-label": "number of moments at each distance",
  }, ...bars);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const ties = counts[nearest];
  const noun = total === 1 ? "moment" : "moments";
  const caption = ties > 1
    ? `${ties} of ${total} ${noun} tie at ${nearest} bits, the smallest distance.`
    : `The nearest of ${total} ${noun} is at ${nearest} bits.`;
  const axis = element("div", { className: "axis" }, element("span", { textContent: "0 bits" }),
    element("span", { textContent: "moments by distance" }), element("span", { textContent: `${bits}` }));
  figure.replaceChildren(picture, axis, element("figcaption", { textContent: caption }));
  figure.hidden = false;
}
