"use strict";
// Videos in a page: a video element with controls where the browser plays the file, else its animated preview; rows in step.
const Videos = (() => {
  function preview(shown, title) {
    const image = document.createElement("img");
    image.src = shown.thumbnail;
    image.alt = title;
    image.loading = "lazy";
    return image;
  }

  function show(shown, title) {
    if (!shown.plays) return preview(shown, title);
    const video = document.createElement("video");
    Object.assign(video, { controls: true, loop: true, muted: true, playsInline: true, preload: "metadata" });
    video.setAttribute("aria-label", title);
    video.onerror = () => video.replaceWith(preview(shown, title));
    video.src = shown.file;
    return video;
  }

  // What one of them does, all do: play, pause, seek and speed. The one that was touched last leads.
  function together(elements) {
    const videos = elements.filter((element) => element.tagName === "VIDEO");
    const others = (leader) => videos.filter((video) => video !== leader && video.isConnected);
    const near = (video, leader) => Math.abs(video.currentTime - leader.currentTime) < 0.02;
    for (const leader of videos) {
      leader.onplay = () => others(leader).filter((video) => video.paused).forEach((video) => {
        video.currentTime = leader.currentTime;
        video.play();
      });
      leader.onpause = () => others(leader).filter((video) => !video.paused).forEach((video) => video.pause());
      leader.onseeked = () => others(leader).filter((video) => leader.paused && !near(video, leader))
        .forEach((video) => { video.currentTime = leader.currentTime; });
      leader.onratechange = () => others(leader).filter((video) => video.playbackRate !== leader.playbackRate)
        .forEach((video) => { video.playbackRate = leader.playbackRate; });
    }
  }

  return { show, together };
})();
