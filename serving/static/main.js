// The page of `search.py serve`. Its state is in the address, so that Back and sharing work:
// row or upload (the query), start and end (its part), class and name (filters), top, compare (row).
import { get, query, upload } from "./api.js";
import { card, element, histogram, resultCard } from "./cards.js";
import { limit, reduced, restart, show, showTime, stop } from "./player.js";

const MOST_UPLOAD = 512 * 2 ** 20;
const TOP = 24;
const $ = id => document.getElementById(id);
let index = null;  // what /api/index says
let found = null;  // what /api/search says
let shown = "";  // the query and filters of `found`
let isMoved = false;  // whether a handle of the part was moved

// ==== state ====

function readState() {
  return Object.fromEntries(new URLSearchParams(location.search));
}

function link(changes) {
  return `/?${query({ ...readState(), ...changes })}`;
}

function go(changes, replace = false) {
  history[replace ? "replaceState" : "pushState"](null, "", link(changes));
  return render();
}

function newSearch(source) {
  return { row: null, upload: null, start: null, end: null, class: null, name: null, top: null, compare: null, ...source };
}

const source = state => (state.upload ? { upload: state.upload } : { row: state.row, version: index.version });
const sourceOf = moment => ({ row: moment.row, version: index.version });

// ==== status ====

function tell(text, kind = "busy") {
  $("status").className = kind;
  $("status").textContent = text;
  $("status").hidden = !text;
}

async function attempt(text, action) {
  tell(text);
  try {
    const result = await action();
    tell("");
    return result;
  } catch (error) {
    tell(error.message, "error");
    if (error.status === 409) index = null;  // another index: read it again
    return null;
  }
}

// ==== views ====

async function render() {
  index ??= await attempt("reading the index", () => get("/api/index"));
  if (!index) return;
  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  $("size").textContent = `${plural(index.videos, "video")}, ${plural(index.moments, "moment")}, ${index.bits} bits`;
  const state = readState();
  const hasQuery = Boolean(state.row || state.upload);
  $("start").hidden = hasQuery;
  $("found").hidden = !hasQuery;
  if (!hasQuery) return renderStart();
  const { compare, ...wanted } = state;
  if (shown !== query(wanted)) await renderSearch(wanted);
  if (found) renderCompare(compare);
}

function renderStart() {
  stop($("player"));
  renderCompare(null);
  [found, shown] = [null, ""];
  document.title = "Video search";
  const classes = index.classes.length > 1;
  $("cards-title").textContent = classes ? "or search with a video of a class" : "or search with one of these";
  const cards = classes
    ? index.classes.map(one => card(one.moment, index.version, link(newSearch({ row: one.moment.row })), one.name, `${one.videos} videos`))
    : index.spread.map(one => card(one, index.version, link(newSearch({ row: one.row })), one.name));
  $("cards").replaceChildren(...cards);
}

async function renderSearch(wanted) {
  const isNew = !found || $("player").dataset.source !== query({ row: wanted.row, upload: wanted.upload });
  const values = { ...wanted, ...source(wanted), top: wanted.top ?? TOP };
  const answer = await attempt("searching", () => get("/api/search", values));
  if (query(wanted) !== query(withoutCompare(readState()))) return;  // another one is wanted by now
  shown = answer ? query(wanted) : "";
  found = answer;
  $("found").hidden = !answer;
  if (!answer) return;
  document.title = `${answer.query.name} – video search`;
  $("query-name").textContent = answer.query.name;
  $("query-class").textContent = answer.query.class ?? "";
  $("unlike").hidden = answer.unlike === null;
  $("unlike").textContent = `Nothing here is like this video: clips of the training lie within ${answer.unlike} bits of others of their class.`;
  renderChips(wanted);
  renderResults();
  if (isNew) await renderQuery(wanted);
  get("/api/histogram", values).then(({ counts }) => {
    const distances = answer.results.map(result => result.distance);
    if (found === answer && distances.length) histogram($("histogram"), counts, counts.findIndex(Boolean), Math.max(...distances));
  }, () => {});
}

function withoutCompare({ compare, ...state }) {
  return state;
}

function renderChips(wanted) {
  const names = index.classes.map(one => one.name);
  const chips = [null, ...(names.length > 1 ? names : [])].map(name => {
    const chip = element("button", { type: "button", textContent: name ?? "all classes" });
    chip.ariaPressed = String((wanted.class ?? null) === name);
    chip.onclick = () => go({ class: name, compare: null, top: null });
    return chip;
  });
  $("chips").replaceChildren(...(chips.length > 1 ? chips : []));
  if (document.activeElement !== $("name")) $("name").value = wanted.name ?? "";
}

function renderResults() {
  const focused = document.activeElement?.closest?.("#results li");
  const place = focused ? [...$("results").children].indexOf(focused) : -1;
  const cards = found.results.map(one => resultCard(one, index.version, index.bits, link({ compare: one.row })));
  $("results").replaceChildren(...cards);
  if (!cards.length) $("results").append(element("li", { textContent: "No moment fits these filters." }));
  $("more").hidden = !found.more;
  if (place >= 0) cards[place]?.querySelector("a").focus();
}

async function renderQuery(wanted) {
  const { start, end } = found.query;
  $("player").dataset.source = query({ row: wanted.row, upload: wanted.upload });
  $("histogram").hidden = true;
  try {
    const info = await show($("player"), source(wanted), start, end);
    if (!info) return;
    const [from, to] = [Math.min(info.from, start), Math.max(info.to ?? end, end)];
    for (const handle of [$("from"), $("to")]) [handle.min, handle.max] = [from, to];
    [$("from").value, $("to").value, isMoved] = [start, end, false];
    showPart();
  } catch (error) {
    tell(error.message, "error");
  }
}

function showPart() {
  const [from, to] = [$("from"), $("to")].map(handle => Number(handle.value));
  $("part").textContent = `${showTime(from)}–${showTime(to)}`;
  $("search-part").disabled = !isMoved || to - from < 0.1;
}

// ==== compare ====

function renderCompare(row) {
  const place = found && row ? found.results.findIndex(one => String(one.row) === row) : -1;
  if (place < 0) {
    if ($("compare").open) $("compare").close();
    for (const video of [$("left"), $("other")]) stop(video);
    return;
  }
  const result = found.results[place];
  $("compare-title").textContent = `${result.rank}: ${result.class ?? result.name}, ${result.distance} bits`;
  $("left-name").textContent = `query: ${found.query.name}, ${showTime(result.query_start)}–${showTime(result.query_end)}`;
  $("other-name").textContent = `${result.name}, ${showTime(result.start)}–${showTime(result.end)}`;
  $("previous").disabled = place === 0;
  $("next").disabled = place === found.results.length - 1;
  if (!$("compare").open) $("compare").showModal();
  $("player").pause();
  const pair = [
    show($("left"), source(readState()), result.query_start, result.query_end, { play: false }),
    show($("other"), sourceOf(result), result.start, result.end, { play: false }),
  ];
  setPlaying(!reduced.matches);
  Promise.all(pair).catch(error => { $("compare-title").textContent = error.message; });
  for (const video of [$("left"), $("other")]) video.oncanplay = () => { if (isPlaying && video.paused) playBoth(); };
}

let isPlaying = true;  // both videos of the comparison

function setPlaying(play) {
  isPlaying = play;
  $("play").textContent = play ? "Pause" : "Play";
}

// Both from the start of their moments, when both can.
function playBoth() {
  const videos = [$("left"), $("other")];
  if (videos.every(video => video.readyState >= 3)) for (const video of videos) restart(video);
}

function togglePlay() {
  setPlaying(!isPlaying);
  if (isPlaying) playBoth();
  else for (const video of [$("left"), $("other")]) video.pause();
}

function step(by) {
  const place = found.results.findIndex(one => String(one.row) === readState().compare) + by;
  if (found.results[place]) go({ compare: found.results[place].row }, true);
}

// ==== events ====

async function searchFile(file) {
  if (!file) return;
  if (file.size > MOST_UPLOAD) return tell(`${file.name} has more than 512 MB; cut it, or use search.py query`, "error");
  const sent = await attempt(`sending ${file.name}`, () => upload(file, part => {
    tell(part < 1 ? `sending ${file.name}: ${Math.round(100 * part)} %` : `reading ${file.name}`);
  }));
  if (sent) await go(newSearch({ upload: sent.upload }));
}

function move(key) {
  const links = [...document.querySelectorAll("main section:not([hidden]) .grid a")];
  const place = links.indexOf(document.activeElement);
  if (place < 0) return links[0]?.focus();
  const top = links[place].offsetTop;
  const columns = Math.max(1, links.filter(one => one.offsetTop === links[0].offsetTop).length);
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  links[Math.min(Math.max(place + by, 0), links.length - 1)].focus();
  return top;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.matches("input, select, textarea");
  const inDialog = $("compare").open;
  if (event.key === "Escape") {
    if (isTyping) return event.target.blur();
    event.preventDefault();
    if (inDialog) go({ compare: null });
    else if (!$("found").hidden) go(newSearch());
  } else if (isTyping || event.target.matches("video")) {
    return;
  } else if (event.key === "/" && !inDialog) {
    event.preventDefault();
    $("name").focus();
  } else if (event.key === " " && !event.target.matches("button")) {
    event.preventDefault();
    if (inDialog) togglePlay();
    else if ($("player").paused) $("player").play();
    else $("player").pause();
  } else if (event.key.startsWith("Arrow")) {
    event.preventDefault();
    if (inDialog) step(event.key === "ArrowLeft" || event.key === "ArrowUp" ? -1 : 1);
    else move(event.key);
  }
}

document.addEventListener("click", event => {
  const target = event.target.closest("a");
  if (!target || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, "", target.href);
  render();
});
document.addEventListener("keydown", onKey);
window.addEventListener("popstate", render);
reduced.addEventListener("change", () => location.reload());
$("compare").addEventListener("cancel", event => { event.preventDefault(); go({ compare: null }); });
$("close").onclick = () => go({ compare: null });
$("play").onclick = togglePlay;
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("search-this").onclick = () => go(newSearch({ row: readState().compare }));
$("more").onclick = () => go({ top: found.results.length + TOP }, true);
$("filters").onsubmit = event => event.preventDefault();
$("name").onchange = () => go({ name: $("name").value, compare: null, top: null });
$("search-part").onclick = () => go({ start: $("from").value, end: $("to").value, compare: null, top: null });
for (const handle of [$("from"), $("to")]) {
  handle.oninput = () => {
    if (Number($("from").value) > Number($("to").value)) $(handle.id === "from" ? "to" : "from").value = handle.value;
    isMoved = true;
    showPart();
    limit($("player"), Number($("from").value), Number($("to").value));
  };
}
$("file").onchange = () => { searchFile($("file").files[0]); $("file").value = ""; };
for (const [name, isOver] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    $("drop").hidden = !isOver;
    if (name === "drop") searchFile(event.dataTransfer.files[0]);
  });
}
render();
