// The live parts: lists refresh themselves; a running comparison shows its progress and log, then its verdict.
"use strict";

const SECOND = 1000;

const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * SECOND));

// After the end of the session, loading the page again redirects to the login.
function leaveIfLoggedOut(response) {
  if (response.status === 401 || new URL(response.url).pathname === "/login") location.reload();
}

async function json(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } });
  leaveIfLoggedOut(response);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.json();
}

function showEndOfLog() {
  const log = document.getElementById("log");
  if (log) log.scrollTop = log.scrollHeight;
}

// The server renders the page; this replaces the element with this id by the one in a newly loaded page.
async function refresh(id) {
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  leaveIfLoggedOut(response);
  if (!response.ok) throw new Error(`${location.href}: ${response.status}`);
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  document.getElementById(id).replaceWith(fresh.getElementById(id));
  document.title = fresh.title;
  showEndOfLog();
}

function showProgress(comparison) {
  const attempt = comparison.attempts.at(-1);
  if (!attempt) return;
  const phase = document.getElementById("phase");
  if (phase && attempt.phase) phase.textContent = attempt.phase;
  for (const arm of attempt.arms) {
    const progress = document.querySelector(`[data-progress="${arm.role}"]`);
    if (!progress) continue;
    const bar = progress.querySelector("progress");
    bar.max = arm.num_steps ?? 1;
    bar.value = arm.step;
    progress.querySelector("span").textContent = `${arm.step} of ${arm.num_steps ?? "?"} steps`;
  }
}

// Returns whether the comparison is finished and its log is at its end.
async function followLog() {
  const log = document.getElementById("log");
  const page = await json(`${log.dataset.url}?after=${log.dataset.after}`);
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 20;
  for (const chunk of page.chunks) {
    const heading = `attempt ${chunk.attempt}: ${chunk.role}`;
    const last = log.querySelector("b:last-of-type");
    if (!last || last.textContent !== heading) {
      const title = document.createElement("b");
      title.textContent = heading;
      log.append(title, "\n");
    }
    log.append(chunk.text);
  }
  log.dataset.after = page.next;
  if (atEnd) log.scrollTop = log.scrollHeight;
  return page.finished;
}

async function followComparison() {
  for (;;) {
    const shown = document.getElementById("comparison");
    if (shown.dataset.status === "finished") return;
    const comparison = await json(shown.dataset.url);
    const attempts = String(comparison.attempts.length);
    if (comparison.status !== shown.dataset.status || attempts !== shown.dataset.attempts) {
      await refresh("comparison");
      continue;
    }
    showProgress(comparison);
    await followLog();
    await wait(1);
  }
}

async function followList() {
  for (;;) {
    const seconds = Number(document.getElementById("rows").dataset.refresh);
    if (!seconds) return;
    await wait(seconds);
    if (!document.hidden) await refresh("rows");
  }
}

// Tries again after an error, so that the page recovers from a restart of the server.
async function forever(follow) {
  for (;;) {
    try {
      return await follow();
    } catch (error) {
      console.warn(error);
      await wait(3);
    }
  }
}

showEndOfLog();
if (document.getElementById("comparison")) forever(followComparison);
if (document.getElementById("rows")) forever(followList);
