"use strict";
// Filters the samples. Without this script the page lists all of them.
const form = document.getElementById("filter");
if (form) {
  const articles = [...document.querySelectorAll("#samples article")];
  const failureOf = (article) => article.dataset.failures.split(" ").filter(Boolean);
  const shows = (article, failure, kind) => {
    const failures = failureOf(article);
    const wanted =
      failure === "" ||
      (failure === "*" && failures.length > 0) ||
      (failure === "-" && failures.length === 0) ||
      failures.includes(failure);
    return wanted && (kind === "" || article.dataset.kind === kind);
  };
  const apply = () => {
    const kind = form.elements.kind ? form.elements.kind.value : "";
    let shown = 0;
    for (const article of articles) {
      article.hidden = !shows(article, form.elements.failure.value, kind);
      shown += !article.hidden;
    }
    form.elements.count.value = `${shown} of ${articles.length} prompts`;
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
// On paper nothing can be opened by a click.
const closed = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = closed();
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
