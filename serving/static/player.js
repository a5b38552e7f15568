// A <video> that repeats one moment of a video.
import { get } from "./api.js";

export const reduced = matchMedia("(prefers-reduced-motion: reduce)");
const moments = new WeakMap();  // <video> -> { start, end, offset, source }

// source: { row } or { upload }. Resolves to the part of the video that can be shown: { from, to }.
export async function show(video, source, start, end, options = {}) {
  const wanted = { source, start, end };
  moments.set(video, wanted);
  const info = await get("/api/video", { ...source, webm: options.webm });
  if (moments.get(video) !== wanted) return null;  // another one was wanted meanwhile
  Object.assign(wanted, info, { webm: options.webm });
  wanted.end = Math.min(end, info.to ?? end);
  video.onloadedmetadata = () => restart(video, options.play ?? !reduced.matches);
  video.ontimeupdate = () => {
    if (video.currentTime + wanted.offset >= wanted.end - 0.02 && !video.seeking) restart(video, !video.paused);
  };
  video.onended = () => restart(video, true);
  video.onerror = () => {  // this browser cannot play the file itself
    if (!wanted.webm && video.src) show(video, source, start, end, { ...options, webm: 1 });
  };
  video.src = info.url;
  return info;
}

export function restart(video, play = true) {
  const moment = moments.get(video);
  if (moment?.offset === undefined || video.readyState < 1) return;  // its address is not known yet
  video.currentTime = Math.max(0, moment.start - moment.offset);
  if (play) video.play().catch(() => {});
}

export function limit(video, start, end) {
  Object.assign(moments.get(video) ?? {}, { start, end });
  restart(video, !video.paused);
}

export function stop(video) {
  moments.delete(video);
  video.onerror = null;
  video.removeAttribute("src");
  video.load();
}

export function showTime(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}
