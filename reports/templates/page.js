// The filter: show the results whose class, path or query contains every word.
const input = document.querySelector("input");
const count = document.querySelector("output");

function filter() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const section of document.querySelectorAll("section.search")) {
    const query = section.querySelector("h2").textContent;
    let matches = 0;
    for (const item of section.querySelectorAll("li")) {
      const text = `${query} ${item.textContent}`.toLowerCase();
      item.hidden = !words.every(word => text.includes(word));
      matches += !item.hidden;
    }
    section.hidden = matches === 0 && words.length > 0;
    shown += matches;
  }
  count.textContent = `${shown} of ${document.querySelectorAll("li").length} results`;
}

input.addEventListener("input", filter);
filter();
