// Previews: each is in the page once, and many pictures may show it.
const previews = JSON.parse(document.getElementById("previews").textContent);
const reduced = matchMedia("(prefers-reduced-motion: reduce)");

// The first frame of an animation, as a picture that does not move.
function still(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      canvas.getContext("2d").drawImage(image, 0, 0);
      resolve(canvas.toDataURL("image/png"));
    };
    image.onerror = reject;
    image.src = source;
  });
}

async function showPreviews() {
  const sources = reduced.matches ? await Promise.all(previews.map(still)) : previews;
  for (const image of document.querySelectorAll("img[data-preview]")) {
    image.src = sources[image.dataset.preview];
  }
}

// The filter: show the results whose class, path or query contains every word, of the queries that
// are of the chosen class and, if wanted, found something wrong.
const form = document.querySelector("form");
const [select, input, count] = ["select", "input", "output"].map(name => form.querySelector(name));
const sections = [...document.querySelectorAll("section.search")];

function classOf(section) {
  return section.querySelector(".query [data-class]")?.textContent ?? "";
}

function filter() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const onlyErrors = form.querySelector("[data-show=errors]")?.ariaPressed === "true";
  const ofQuery = sections.some(classOf);
  let shown = 0, queries = 0;
  for (const section of sections) {
    const query = section.querySelector(".query").textContent;
    const fits = (!onlyErrors || section.querySelector(".wrong"))
      && (!ofQuery || !select.value || classOf(section) === select.value);
    let matches = 0;
    for (const item of section.querySelectorAll("li")) {
      const name = item.querySelector("[data-class]")?.textContent;
      const text = `${query} ${item.textContent}`.toLowerCase();
      item.hidden = !words.every(word => text.includes(word))
        || (!ofQuery && select.value && name !== select.value);
      matches += !item.hidden;
    }
    section.hidden = !fits || (matches === 0 && (words.length > 0 || select.value !== ""));
    shown += section.hidden ? 0 : matches;
    queries += !section.hidden;
  }
  const total = document.querySelectorAll(".results li").length;
  count.textContent = sections.length > 1
    ? `${queries} of ${sections.length} queries` : `${shown} of ${total} results`;
}

function fillClasses() {
  const ofQueries = sections.map(classOf).filter(Boolean);
  const ofResults = [...document.querySelectorAll(".results [data-class]")].map(e => e.textContent);
  const names = new Set(ofQueries.length ? ofQueries : ofResults);
  for (const name of [...names].sort()) select.add(new Option(name, name));
  select.hidden = names.size < 2;
}

for (const button of form.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    for (const other of form.querySelectorAll("button")) other.ariaPressed = String(other === button);
    filter();
  });
}
form.addEventListener("submit", event => event.preventDefault());
input.addEventListener("input", filter);
select.addEventListener("change", filter);
reduced.addEventListener("change", showPreviews);
fillClasses();
filter();
showPreviews();
